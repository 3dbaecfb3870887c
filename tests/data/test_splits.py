import hashlib

import pytest
import torch

from pyro_vae.data import load_data
from pyro_vae.data.images import TensorImages
from pyro_vae.data.splits import Split
from pyro_vae.data.values import Values
from pyro_vae.errors import InputError

SPECS = [
    "digits",
    "digits(binarize=threshold)",
    "digits(values=levels)",
    "digits(values=continuous)",
    "digits(values=counts)",
]


def numbered(count, values=None, seed=1):
    """A split whose datum i is the level i."""
    raw = torch.arange(count, dtype=torch.int32)[:, None]
    return Split(TensorImages(raw), None, values or Values("levels", "none", count), seed)


@pytest.mark.parametrize("spec", SPECS)
def test_scored_depends_on_the_datum_alone(spec):
    split = load_data(spec).test
    full = split.scored()
    assert full.shape == (300, 8, 8)
    assert full.dtype == torch.float32
    list(split.batches(64, torch.Generator().manual_seed(1)))
    index = torch.tensor([5, 299, 5, 0, -1])
    assert torch.equal(split.scored(index), full[index])
    assert torch.equal(split.scored(slice(100, 20, None)), full[100:20])
    assert torch.equal(split.scored(slice(7, 200, 13)), full[7:200:13])
    assert torch.equal(load_data(spec).test.scored(slice(250, 300)), full[250:])


def test_scoring_in_parts_is_the_same(monkeypatch):
    split = load_data("digits(values=continuous)").valid
    full, digest = split.scored(), split.content_hash
    monkeypatch.setattr("pyro_vae.data.splits._CHUNK", 500)
    other = load_data("digits(values=continuous)").valid
    assert torch.equal(other.scored(), full)
    assert other.content_hash == digest
    assert torch.equal(other.mean(), split.mean())


def test_content_hash_is_of_what_is_scored():
    split = load_data("digits").test
    expected = hashlib.sha256(b"(300, 8, 8) float32" + split.scored().numpy().tobytes())
    assert split.content_hash == expected.hexdigest()


def test_one_pixel_or_the_shape_changes_the_hash():
    raw = torch.randint(0, 2, (20, 6, 4), generator=torch.Generator().manual_seed(0))
    changed = raw.clone()
    changed[13, 2, 1] ^= 1
    hashes = {
        Split(TensorImages(x), None, Values("binary", "none", 2), 1).content_hash
        for x in (raw, changed, raw.view(20, 4, 6), raw.view(10, 12, 4))
    }
    assert len(hashes) == 4


def test_counts_are_the_levels_without_a_limit():
    levels, counts = load_data("digits(values=levels)"), load_data("digits(values=counts)")
    assert counts.spec == "digits(values=counts, binarize=none)"
    assert (counts.measure, counts.num_levels, counts.dequantized) == ("counts", None, False)
    assert torch.equal(counts.test.scored(), levels.test.scored())
    assert counts.test.content_hash == levels.test.content_hash
    protocol = counts.protocol("test")
    assert (protocol["binarization"], protocol["binarization_seed"]) == ("none", None)


def test_splits_are_scored_with_seeds_of_their_own():
    data = load_data("digits")
    protocols = [data.protocol(name) for name in ("train", "valid", "test")]
    assert [p["binarization_seed"] for p in protocols] == [101, 102, 103]
    assert len({p["content_hash"] for p in protocols}) == 3
    grey = TensorImages(torch.full((10, 50), 8))
    values = Values("binary", "dynamic", 17)
    first, second = (Split(grey, None, values, seed).scored() for seed in (102, 103))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("batch_size", [1, 32, 100, 1000])
def test_an_epoch_has_every_datum_once(batch_size, generator):
    split = numbered(100)
    batches = list(split.batches(batch_size, generator))
    assert [len(b) for b in batches] == [min(batch_size, 100)] * max(1, 100 // batch_size) + (
        [100 % batch_size] if 0 < 100 % batch_size < 100 else []
    )
    x = torch.cat(batches).flatten()
    assert torch.equal(x.sort().values, torch.arange(100.0))
    assert not torch.equal(x, torch.arange(100.0))
    again = torch.cat(list(split.batches(batch_size, generator))).flatten()
    assert not torch.equal(x, again)


@pytest.mark.parametrize("spec", SPECS)
def test_batches_are_determined_by_the_generator(spec):
    def epochs(seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.cat([x for _ in range(2) for x in split.batches(100, generator)])

    split = load_data(spec).train
    assert torch.equal(epochs(1), epochs(1))
    assert not torch.equal(epochs(1), epochs(2))


@pytest.mark.parametrize(("spec", "redrawn"), [(SPECS[0], True), (SPECS[2], False)])
def test_binarization_is_redrawn_each_epoch(spec, redrawn, generator):
    """Sums over an epoch do not depend on its order."""
    split = load_data(spec).train
    sums = {float(sum(x.sum() for x in split.batches(100, generator))) for _ in range(5)}
    assert (len(sums) > 1) == redrawn


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batches_have_the_dtype_asked_for(dtype, generator):
    for spec in SPECS:
        x = next(load_data(spec).train.batches(7, generator, dtype))
        assert x.dtype == dtype
        assert x.shape == (7, 8, 8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_lie_on_the_generators_device():
    generator = torch.Generator(device="cuda").manual_seed(0)
    for spec in SPECS:
        x = next(load_data(spec).train.batches(500, generator))
        assert x.device.type == "cuda"
    assert 0 < float(x.min()) <= float(x.max()) < 1


def test_the_global_generator_is_left_alone(generator):
    before = torch.get_rng_state()
    data = load_data("digits")
    data.valid.scored()
    data.protocol("test")
    list(data.train.subset(50).batches(10, generator))
    assert torch.equal(torch.get_rng_state(), before)


def test_subset_is_random_seeded_and_scored_as_before():
    split = numbered(1000)
    subset = split.subset(100)
    numbers = subset.scored().flatten()
    assert len(numbers.unique()) == len(subset) == 100
    # Mean 499.5, standard error √((1000² − 1)/12 · (1 − 0.1)/100) = 27.4: never the front.
    assert abs(float(numbers.mean()) - 499.5) < 4 * 27.4
    assert torch.equal(split.subset(100).scored(), subset.scored())
    assert not torch.equal(split.subset(100, seed=1).scored(), subset.scored())
    assert torch.equal(split.subset(1000).scored().sort(0).values, split.scored())

    noisy = numbered(1000, Values("continuous", "none", 1000))
    full = noisy.scored()
    assert torch.equal(noisy.subset(100).scored(), full[numbers.long()])
    nested = noisy.subset(100).subset(10, seed=5).scored()
    assert torch.isin(nested, full).all()


def test_subset_keeps_labels_beside_their_data():
    split = load_data("digits(values=levels)").test
    subset = split.subset(50)
    for x, label in zip(subset.scored(), subset.labels, strict=True):
        (match,) = (split.scored() == x).all((1, 2)).nonzero()
        assert split.labels[match] == label


@pytest.mark.parametrize("count", [0, -1, 101])
def test_subset_of_an_impossible_size(count):
    with pytest.raises(InputError, match="takes 1 to 100"):
        numbered(100).subset(count)


@pytest.mark.parametrize("batch_size", [0, -5])
def test_impossible_batch_size_is_refused_at_once(batch_size, generator):
    with pytest.raises(InputError, match="batch_size must be 1 or more"):
        numbered(100).batches(batch_size, generator)


def test_data_mean_is_in_the_units_of_the_values():
    levels = load_data("digits(values=levels)")
    mean = levels.train.scored().double().mean(0)
    torch.testing.assert_close(levels.data_mean.double(), mean, rtol=1e-6, atol=1e-6)
    expected = {
        "digits": mean / 16,
        "digits(values=continuous)": (mean + 0.5) / 17,
        "digits(values=counts)": mean,
        "digits(binarize=threshold)": (levels.train.scored() >= 8).double().mean(0),
    }
    for spec, value in expected.items():
        got = load_data(spec).data_mean
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), value, rtol=1e-6, atol=1e-6)


def test_protocol_of_a_subset_and_of_an_unknown_split():
    data = load_data("digits(binarize=threshold)")
    subset = data.test.subset(20)
    assert data.protocol("test", subset) == {
        "data": "digits(values=binary, binarize=threshold)",
        "split": "test",
        "count": 20,
        "content_hash": subset.content_hash,
        "binarization": "threshold",
        "binarization_seed": None,
    }
    with pytest.raises(InputError, match="did you mean 'test'"):
        data.protocol("tests")


@pytest.mark.parametrize("spec", SPECS)
def test_batches_sent_one_by_one_are_those_that_lie_on_the_device(spec, monkeypatch):
    split = load_data(spec).train
    expected = list(split.batches(70, torch.Generator().manual_seed(1)))
    monkeypatch.setattr("pyro_vae.data.images._fits", lambda raw, device: False)
    split._images._on_device.clear()
    found = list(split.batches(70, torch.Generator().manual_seed(1)))
    assert not split._images._on_device
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("spec", SPECS)
def test_batches_are_made_without_waiting_for_the_device(spec, fits, monkeypatch):
    monkeypatch.setattr("pyro_vae.data.images._fits", lambda raw, device: fits)
    generator = torch.Generator(device="cuda").manual_seed(0)
    batches = load_data(spec).train.batches(70, generator)
    first = next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        rest = list(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(x.device.type == "cuda" for x in [first, *rest])
