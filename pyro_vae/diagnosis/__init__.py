"""Where the ELBO loses log p(x), what the latents carry, and whether the model fits."""

from pyro_vae.diagnosis.diagnose import PARTS, Settings, diagnose
from pyro_vae.diagnosis.rows import Diagnosis

__all__ = ["diagnose", "Settings", "PARTS", "Diagnosis"]
