"""What a training step with a mixture of K components holds: [B, K] numbers, one encoder run."""

import functools
from collections import Counter

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch.fx import Interpreter

from pyro_vae.assembly import build_pair
from pyro_vae.capture import capture
from pyro_vae.config import Config
from pyro_vae.objectives.dreg import DReG
from pyro_vae.objectives.iwae import IWAE
from pyro_vae.protocols import Facts

# No two sizes are equal, so that a product's are those of one layer.
BATCH, COMPONENTS, LATENT_DIM, PIXELS, HIDDEN, PARTICLES = 24, 30, 10, 16, 8, 3
OBJECTIVES = {
    "trace": (Trace_ELBO(), 1),
    "trace_mean_field": (TraceMeanField_ELBO(), 1),
    "iwae": (IWAE(PARTICLES), PARTICLES),
    "dreg": (DReG(PARTICLES), PARTICLES),
}


class Shapes(Interpreter):
    """Runs a graph; keeps the shape of every tensor, and those of every matrix product."""

    def __init__(self, module):
        super().__init__(module)
        self.made, self.products = [], Counter()

    def run_node(self, node):
        out = super().run_node(node)
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.made.append((tensor.numel(), tuple(tensor.shape), str(node)))
        return out

    def call_function(self, target, args, kwargs):
        if target in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            left, right = args[-2:]
            self.products[(*left.shape, right.shape[1])] += 1
        return super().call_function(target, args, kwargs)


@functools.cache
def captured_step(prior, objective):
    """The graph of loss and gradients, run: all that a step computes but the update."""
    loss_of, _ = OBJECTIVES[objective]
    torch.manual_seed(0)
    config = Config(encoder=f"mlp(hidden=({HIDDEN},))", latent_dim=LATENT_DIM, prior=prior)
    pair = build_pair(config, Facts((PIXELS,), "binary"), torch.full((PIXELS,), 0.5))
    x = torch.bernoulli(torch.full((BATCH, PIXELS), 0.5))
    leaves = [*pair.model.parameters(), *pair.guide.parameters()]

    def function():
        loss = loss_of.differentiable_loss(*pair, x)
        return [loss, *torch.autograd.grad(loss, leaves)]

    inputs = [x, *leaves]
    with pyro.get_param_store().scope():
        graph = capture(function, inputs)
    shapes = Shapes(graph.module)
    with torch.no_grad():
        shapes.run(*inputs, *graph.lifted)
    return shapes


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("prior", ["mixture", "vamp"])
def test_no_tensor_of_a_step_pairs_every_z_with_every_component_in_every_dimension(
    prior, objective
):
    """N K numbers at most for N z, not N K D."""
    _, particles = OBJECTIVES[objective]
    shapes = captured_step(f"{prior}(components={COMPONENTS})", objective)
    N = particles * BATCH
    allowed = max(N * COMPONENTS, N * PIXELS, COMPONENTS * max(2 * LATENT_DIM, PIXELS))
    assert allowed < N * COMPONENTS * LATENT_DIM
    assert (N, COMPONENTS) in {shape for _, shape, _ in shapes.made}
    assert max(shapes.made)[0] <= allowed, max(shapes.made)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("prior", ["mixture", "vamp"])
def test_a_density_is_one_matrix_product_and_two_backward(prior, objective):
    """[z², z] with the weights; its gradients by z and by the weights."""
    _, particles = OBJECTIVES[objective]
    products = captured_step(f"{prior}(components={COMPONENTS})", objective).products
    N, K, D = particles * BATCH, COMPONENTS, 2 * LATENT_DIM
    density = {(N, D, K): 1, (N, K, D): 1, (K, N, D): 1, (D, N, K): 0}
    found = {sizes: products[sizes] for sizes in density}
    assert found[N, D, K] == found[N, K, D] == 1
    assert found[K, N, D] + found[D, N, K] == 1


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_vamp_runs_the_encoder_once_a_step_on_the_pseudo_inputs(objective):
    """One product forward; one each backward to the weights and to the pseudo-inputs."""
    products = captured_step(f"vamp(components={COMPONENTS})", objective).products
    assert products[COMPONENTS, PIXELS, HIDDEN] == 1
    assert products[HIDDEN, COMPONENTS, PIXELS] == 1
    assert products[COMPONENTS, HIDDEN, PIXELS] == 1
    of_components = {sizes: n for sizes, n in products.items() if sizes[0] == COMPONENTS}
    assert sum(of_components.values()) <= 6, of_components
