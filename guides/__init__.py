"""Amortized guides q(z|x), one a file; ``posterior(x)`` returns a distribution over z."""
