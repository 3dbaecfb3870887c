"""Bijections of z that flows are made of, and the networks that steer them.

Pyro's own transforms were tried. AffineAutoregressive cannot be inverted in
float64, its clipped scale has a gradient that is not its derivative, and it
reads the features again for every particle; the spline asserts on the device's
values. All of them hand back what they cached under no_grad, whose gradient is
missing, or before the parameters changed.
"""

from pyro_vae.flows.autoregressive import Autoregressive, AutoregressiveLayer
from pyro_vae.flows.coupling import Coupling, CouplingLayer
from pyro_vae.flows.elementwise import Affine, Elementwise, Spline
from pyro_vae.flows.sizes import check_sizes
from pyro_vae.flows.step import LocScale, Step, bounded, state_of

__all__ = [
    "Step",
    "LocScale",
    "Autoregressive",
    "AutoregressiveLayer",
    "Coupling",
    "CouplingLayer",
    "Elementwise",
    "Affine",
    "Spline",
    "bounded",
    "state_of",
    "check_sizes",
]
