"""Likelihoods p(x|z), one a file; ``forward(params)`` returns a distribution over x."""
