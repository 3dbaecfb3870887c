"""Data sets, their splits, their values and a content hash of exactly what is scored.

A data set is named by a spec, ``digits(values=levels)`` or ``path/to/images.npz``. Levels l are
whole numbers 0 … n−1 kept as such; what a model sees are float tensors of one measure:

- ``binary``: 0 or 1, by a Bernoulli(l / (n−1)) draw or by the threshold l / (n−1) ≥ ½;
- ``levels``: l itself, as a float;
- ``counts``: whole numbers 0, 1, 2, … as floats, without an upper limit;
- ``continuous``: (l + u) / n with u uniform on (0, 1), or real numbers as they were given.
"""

__all__ = ["load_data", "describe_data", "DataSplits", "Split"]

from pyro_vae.data.load import describe_data, load_data
from pyro_vae.data.splits import DataSplits, Split
