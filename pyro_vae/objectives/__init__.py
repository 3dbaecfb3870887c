"""Objectives, one estimator a file, each a ``pyro.infer.ELBO``."""
