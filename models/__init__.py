"""Generative programs p(z) p(x|z), one a file."""
