"""Raw data in their splits, before anyone has chosen what their values are."""

__all__ = ["SPLITS", "Source", "partition", "partition_sizes"]

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pyro_vae.data.images import Images
from pyro_vae.data.noise import permutation
from pyro_vae.errors import InputError

SPLITS = ("train", "valid", "test")

_SEED = 0  # of every fixed shuffle into splits


@dataclass(frozen=True)
class Source:
    """What a loader returns.

    Arguments:
        images: the raw images of train, valid and test.
        labels: int64 ``[N]`` for each, or None.
        num_levels: n, above the largest level; 2 where the data hold only 0 and 1; None for reals.
        ordered: neighbouring data depend on each other.
    """

    images: Mapping[str, Images]
    labels: Mapping[str, Tensor | None]
    num_levels: int | None
    ordered: bool = False

    @staticmethod
    def select(
        images: Images,
        labels: Tensor | None,
        rows: Mapping[str, Tensor],
        num_levels: int | None,
        ordered: bool = False,
    ) -> "Source":
        """Cut one array of images into splits by their row numbers."""
        return Source(
            {name: images.select(index) for name, index in rows.items()},
            {name: None if labels is None else labels[index] for name, index in rows.items()},
            num_levels,
            ordered,
        )


def partition(sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Return disjoint random rows of the given sizes, by the one fixed seed."""
    order = permutation(sum(sizes.values()), _SEED)
    return dict(zip(sizes, order.split(list(sizes.values())), strict=True))


def partition_sizes(name: str, count: int, missing: tuple[str, ...] = SPLITS[1:]) -> dict[str, int]:
    """Return the sizes for cutting each ``missing`` split, a tenth, from ``count`` training data.

    Raises:
        InputError: too few data to give each split one.
    """
    if count < 1 + len(missing):
        raise InputError(f"{name} needs at least {1 + len(missing)} images, got {count}")
    held_out = dict.fromkeys(missing, max(1, count // 10))
    return {"train": count - sum(held_out.values()), **held_out}
