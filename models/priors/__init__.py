"""Priors p(z), one a file; ``forward()`` returns a distribution over one z."""
