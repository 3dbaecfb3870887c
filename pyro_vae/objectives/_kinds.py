"""Which objectives are the ELBO in value, whatever their gradient: by exact class."""

__all__ = ["PYRO_ELBOS", "is_elbo"]

from typing import Any

from pyro.infer import (
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)

from pyro_vae.objectives.closed_form import ClosedFormELBO
from pyro_vae.objectives.sticking_the_landing import StickingTheLanding
from pyro_vae.objectives.trace import Trace
from pyro_vae.objectives.trace_enum import TraceEnum
from pyro_vae.objectives.trace_graph import TraceGraph
from pyro_vae.objectives.trace_mean_field import TraceMeanField

PYRO_ELBOS = (
    Trace_ELBO, JitTrace_ELBO, TraceMeanField_ELBO, JitTraceMeanField_ELBO, TraceGraph_ELBO,
    JitTraceGraph_ELBO, TraceEnum_ELBO, JitTraceEnum_ELBO, Trace, TraceMeanField, TraceGraph,
    TraceEnum,
)  # fmt: skip


def is_elbo(objective: Any) -> bool:
    """Whether an objective's value is the ELBO; of a user's subclass nothing is known."""
    kind = type(objective)
    if kind is ClosedFormELBO:
        return not objective.free_bits
    return kind in PYRO_ELBOS or kind is StickingTheLanding
