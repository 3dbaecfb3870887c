"""Wrong constants, planted one at a time in a copy of the code: a named test must notice each.

Slow, for each runs that test in a process of its own: ``make slow ARGS="-k planted"``.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]


class Defect(NamedTuple):
    """``right`` replaced by ``wrong`` in ``file``; ``test`` fails."""

    name: str
    file: str
    right: str
    wrong: str
    test: str


IMPORTANCE = "pyro_vae/evaluation/importance.py"
NORMAL = "models/likelihoods/normal.py"
NORMAL_RETURN = "return dist.Normal(loc, scale, validate_args=False)"

DEFECTS = [
    Defect(
        "a missing ½ in the log-density of the normal",
        NORMAL,
        NORMAL_RETURN,
        "wrong = dist.Normal(loc, scale, validate_args=False)\n"
        "        wrong.log_prob = lambda x: -(((x - loc) / scale) ** 2) - scale.log()"
        " - 0.9189385332046727\n"
        "        return wrong",
        "tests/likelihoods/test_normal.py::test_integrates_to_one",
    ),
    Defect(
        "a dropped log 2π",
        NORMAL,
        NORMAL_RETURN,
        "wrong = dist.Normal(loc, scale, validate_args=False)\n"
        "        wrong.log_prob = lambda x: -0.5 * ((x - loc) / scale) ** 2 - scale.log()\n"
        "        return wrong",
        "tests/likelihoods/test_normal.py::test_integrates_to_one",
    ),
    Defect(
        "a variance for a scale",
        "models/likelihoods/_scale.py",
        "params.new_full((), float(self.scale))",
        "params.new_full((), float(self.scale) ** 2)",
        "tests/likelihoods/test_normal.py::test_a_number_is_the_standard_deviation",
    ),
    Defect(
        "a prior twice as wide",
        "models/priors/standard_normal.py",
        "torch.ones(latent_dim)",
        "torch.full((latent_dim,), 2.0)",
        "tests/priors/test_standard_normal.py::test_moments_of_samples",
    ),
    Defect(
        "a missing ½ in the bias of log p̂",
        IMPORTANCE,
        "-error.square() / 2",
        "-error.square()",
        "tests/evaluation/test_importance.py::test_standard_error_and_bias_are_right",
    ),
    Defect(
        "a standard deviation for a standard error",
        "pyro_vae/evaluation/_moments.py",
        "(self.sum_squares / (self.count - 1) / self.count).sqrt()",
        "(self.sum_squares / (self.count - 1)).sqrt()",
        "tests/evaluation/test_importance.py::test_elbo_and_its_terms_are_the_exact_ones",
    ),
    Defect(
        "whole blocks drawn where K asks for less",
        IMPORTANCE,
        "min(SAMPLE_BLOCK, num_samples - start)",
        "SAMPLE_BLOCK",
        "tests/evaluation/test_importance.py::test_draws_exactly_k_samples_and_encodes_once_a_block",
    ),
    Defect(
        "divided by another K than was drawn",
        IMPORTANCE,
        "self.log_sum - math.log(K)",
        "self.log_sum - math.log(K + 1)",
        "tests/evaluation/test_importance.py::test_exact_posterior_has_no_error",
    ),
    Defect(
        "the same noise in every block of data",
        IMPORTANCE,
        "derive_seed(seed, purpose, i, j)",
        "derive_seed(seed, purpose, j)",
        "tests/evaluation/test_importance.py::test_noise_differs_between_blocks",
    ),
    Defect(
        "the ELBO reported as the IWAE bound",
        IMPORTANCE,
        '"log_px": self.log_sum - math.log(K),',
        '"log_px": self.elbo.mean,',
        "tests/evaluation/test_importance.py::test_mean_weight_is_the_evidence",
    ),
    Defect(
        "a mean for a sum over sites",
        "pyro_vae/execution.py",
        "plain = plain + log_prob",
        "plain = plain + log_prob / len(log_probs)",
        "tests/test_log_weights.py::test_two_latent_sites",
    ),
    Defect(
        "a plate's scale inside the weight",
        "pyro_vae/execution.py",
        "scale_and_mask(log_prob, 1.0, mask)",
        'scale_and_mask(log_prob, site["scale"], mask)',
        "tests/test_log_weights.py::test_scales_do_not_enter",
    ),
    Defect(
        "a mean of batch means",
        "pyro_vae/training.py",
        "progress.loss_sum += loss\n            progress.count += step.x.shape[0]",
        "progress.loss_sum += loss / step.x.shape[0]\n            progress.count += 1",
        "tests/test_training.py::test_the_training_bound_is_the_mean_over_data_not_over_batches",
    ),
    Defect(
        "β on the likelihood too",
        "pyro_vae/annealing.py",
        'if not msg["is_observed"] and not',
        "if not",
        "tests/test_annealing.py::test_value_is_the_beta_elbo",
    ),
    Defect(
        "a sum over particles for their mean",
        "pyro_vae/objectives/trace.py",
        "super().__init__(**particles(num_particles))",
        "super().__init__(**particles(num_particles))\n"
        "        self.loss = lambda *args: num_particles * Trace_ELBO.loss(self, *args)",
        "tests/objectives/test_trace.py::test_mean_is_the_exact_elbo",
    ),
    Defect(
        "a Jacobian with the wrong sign",
        "pyro_vae/evaluation/scores.py",
        "log_px.value - jacobian",
        "log_px.value + jacobian",
        "tests/evaluation/test_scores.py::test_bits_per_dim_of_log_p_zero",
    ),
    Defect(
        "video frames taken as independent",
        "pyro_vae/standard_error.py",
        "if ordered:",
        "if False:",
        "tests/evaluation/test_scores.py::test_ordered_data_have_the_larger_error_they_deserve",
    ),
    Defect(
        "levels divided by n for a probability, not by n − 1",
        "pyro_vae/data/values.py",
        "return self.num_levels - 1",
        "return self.num_levels",
        "tests/data/test_values.py",
    ),
    Defect(
        "a gradient clipped parameter by parameter",
        "pyro_vae/compiled_svi.py",
        "return [norm, *(None if g is None else g * factor for g in gradients)]",
        "return [norm, *(g * (clip_norm / g.norm()).clamp(max=1.0) for g in gradients)]",
        "tests/test_training.py::test_clipping_bounds_the_joint_norm",
    ),
    Defect(
        "the standard deviation for the variance in a mixture",
        "models/priors/_mixture.py",
        "precision = scale**-2",
        "precision = scale**-1",
        "tests/test_densities.py::test_prior_integrates_to_one_and_draws_follow_it",
    ),
    Defect(
        "a mixture's weights left unnormalized",
        "models/priors/_mixture.py",
        "self.logits.double().log_softmax(-1)\n",
        "self.logits.double()\n",
        "tests/test_densities.py::test_prior_integrates_to_one_and_draws_follow_it",
    ),
    Defect(
        "the first component in every draw",
        "models/priors/_mixture.py",
        "k = _draw_components(self.logits.softmax(-1), shape[:-1])",
        "k = 0 * _draw_components(self.logits.softmax(-1), shape[:-1])",
        "tests/test_densities.py::test_prior_integrates_to_one_and_draws_follow_it",
    ),
    Defect(
        "a flow's log-determinant averaged over dimensions",
        "pyro_vae/flows/autoregressive.py",
        "return y, log_slope.sum(-1)",
        "return y, log_slope.mean(-1)",
        "tests/test_densities.py::test_guide_density_is_that_of_its_draws",
    ),
    Defect(
        "tanh for its square in a planar flow",
        "guides/planar.py",
        "torch.log1p((1 - t * t) * self.slope)",
        "torch.log1p((1 - t) * self.slope)",
        "tests/test_densities.py::test_guide_density_is_that_of_its_draws",
    ),
    Defect(
        "log det of the covariance for that of its factor",
        "guides/full_rank_normal.py",
        "- log_det - constant",
        "- 2 * log_det - constant",
        "tests/test_densities.py::test_guide_density_is_that_of_its_draws",
    ),
    Defect(
        "the low-rank factor left out of the log-determinant",
        "guides/low_rank_normal.py",
        "scale.log().sum(-1) + log_R",
        "scale.log().sum(-1) + 0 * log_R",
        "tests/test_densities.py::test_guide_density_is_that_of_its_draws",
    ),
    Defect(
        "edge bins that end, as those of the peers",
        "models/likelihoods/_levels.py",
        "torch.where(below_last, log_upper, 0.0)",
        "log_upper",
        "tests/test_densities.py::test_likelihood_has_mass_one",
    ),
    Defect(
        "a continuous Bernoulli without its normalizer",
        "models/likelihoods/continuous_bernoulli.py",
        "torch.log(a / -torch.expm1(-a))",
        "-torch.log(-torch.expm1(-a))",
        "tests/test_densities.py::test_likelihood_has_mass_one",
    ),
    Defect(
        "r left out of a negative binomial's exponent",
        "models/likelihoods/negative_binomial.py",
        "(x + r) * ratio.log1p()",
        "x * ratio.log1p()",
        "tests/test_densities.py::test_likelihood_has_mass_one",
    ),
    Defect(
        "the zeros of the counts forgotten under inflation",
        "models/likelihoods/zero_inflated_negative_binomial.py",
        "torch.logaddexp(logsigmoid(self.gate_logits), counted)",
        "logsigmoid(self.gate_logits)",
        "tests/test_densities.py::test_likelihood_has_mass_one",
    ),
    Defect(
        "a Beta for its neighbour",
        "models/likelihoods/beta.py",
        "(a - 1) * x.log()",
        "a * x.log()",
        "tests/test_densities.py::test_likelihood_has_mass_one",
    ),
    Defect(
        "p(z1) at z2 = 0 for p(z1|z2)",
        "models/hierarchical.py",
        'pyro.sample("z1", self.middle(z2))',
        'pyro.sample("z1", self.middle(0 * z2))',
        "tests/models/test_hierarchical.py::test_terms_are_those_of_both_layers",
    ),
    Defect(
        "a scale for a variance in the exact posterior",
        "models/linear_gaussian.py",
        "precision = eye + W.T @ W / scale**2",
        "precision = eye + W.T @ W / scale",
        "tests/models/test_linear_gaussian.py::test_posterior_by_bayes_rule",
    ),
    Defect(
        "densities brought to levels with the wrong sign",
        "pyro_vae/comparability.py",
        "value=estimate.value - shift",
        "value=estimate.value + shift",
        "tests/test_comparability.py::test_the_mass_on_levels_of_a_density_flat_within_cells",
    ),
    Defect(
        "a one-sided quantile for a two-sided interval",
        "pyro_vae/significance.py",
        "-float(stdtrit(freedom, (1 - level) / (2 * comparisons)))",
        "-float(stdtrit(freedom, (1 - level) / comparisons))",
        "tests/test_significance.py::test_welch_is_scipys",
    ),
    Defect(
        "s² for s²/n",
        "pyro_vae/significance.py",
        "return variance(values) / len(values)",
        "return variance(values)",
        "tests/test_significance.py::test_welch_is_scipys",
    ),
    Defect(
        "errors of draws averaged, not added in squares",
        "pyro_vae/sweep/results.py",
        "math.hypot(*draws) / count",
        "sum(draws) / count",
        "tests/test_sweep.py::test_means_over_seeds_and_their_errors",
    ),
    Defect(
        "active units by the prior's scale, not its variance",
        "pyro_vae/evaluation/active_units.py",
        "/ scale.square()",
        "/ scale",
        "tests/evaluation/test_active_units.py::test_activity_is_the_variance_of_the_mean_over_the_priors",
    ),
    Defect(
        "each pair judged as if it were the only one",
        "pyro_vae/sweep/results.py",
        "count = self.comparisons",
        "count = 1",
        "tests/test_sweep.py::test_all_pairs_share_the_error_in_the_sweep_itself",
    ),
    Defect(
        "a verdict on the seeds that did not fail",
        "pyro_vae/sweep/results.py",
        "if not failed:",
        "if True:",
        "tests/test_sweep.py::test_the_seeds_that_did_not_fail_decide_nothing",
    ),
    Defect(
        "one draw taken as without error",
        "pyro_vae/evaluation/importance.py",
        "~(self.standard_error <= LARGEST_ERROR)",
        "self.standard_error > LARGEST_ERROR",
        "tests/evaluation/test_importance.py::test_one_draw_has_no_error_to_trust",
    ),
    Defect(
        "a density remembered for a draw that was changed",
        "pyro_vae/flows/step.py",
        "return pair if state_of(pair.x, pair.y) == pair.state else None",
        "return pair",
        "tests/test_densities.py::test_a_draw_that_was_changed_has_the_density_of_what_it_became",
    ),
    Defect(
        "the exact evidence in the data's precision",
        "models/linear_gaussian.py",
        "parameter.double() for parameter in self._parameters_of_p()",
        "parameter for parameter in self._parameters_of_p()",
        "tests/models/test_linear_gaussian.py::test_evidence_is_exact_in_float32_too",
    ),
    Defect(
        "p(c) of a latent that is summed out left out",
        "pyro_vae/execution.py",
        "rest = [*summed, *(",
        "rest = [*(",
        "tests/objectives/test_discrete.py::test_log_weights_sum_out",
    ),
    Defect(
        "N/B of a plate taken for a β",
        "pyro_vae/execution.py",
        'return site["scale"] if plates == 1 else site["scale"] / plates',
        'return site["scale"]',
        "tests/objectives/test_scales.py::test_beta_in_a_subsampled_plate",
    ),
    Defect(
        "N/B of a plate dropped",
        "pyro_vae/objectives/_per_datum.py",
        "return plate_scale(observed) * common_scale(model)",
        "return common_scale(model)",
        "tests/objectives/test_plates.py::test_a_minibatch_in_a_plate_of_all_data",
    ),
    Defect(
        "a sum for the mean of weights in IWAE",
        "pyro_vae/objectives/_weights.py",
        "log_weight.logsumexp(0) - math.log(log_weight.shape[0])",
        "log_weight.logsumexp(0)",
        "tests/objectives/test_iwae.py::test_mean_ratio_to_the_evidence_is_one",
    ),
    Defect(
        "weights normalized over the batch",
        "pyro_vae/objectives/_weights.py",
        "log_weight.detach().softmax(0)",
        "log_weight.detach().softmax(1)",
        "tests/objectives/test_reweighted_wake_sleep.py::test_weights_a_datum",
    ),
    Defect(
        "w̃ for w̃² in DReG",
        "pyro_vae/objectives/dreg.py",
        "        return weights, weights\n",
        "        return weights, None\n",
        "tests/objectives/test_dreg.py::test_gradient_of_two_particles_by_quadrature",
    ),
    Defect(
        "DReG without the β of its score",
        "pyro_vae/objectives/dreg.py",
        "return weights, 1 - beta * (1 - weights)",
        "return weights, weights",
        "tests/objectives/test_dreg.py::test_mean_is_that_of_iwae_with_beta",
    ),
    Defect(
        "a bridge left open while log q is differentiated",
        "pyro_vae/objectives/_path.py",
        "    draws.open = False\n",
        "    draws.open = True\n",
        "tests/objectives/test_dreg.py::test_mean_is_that_of_iwae_for_a_chain",
    ),
    Defect(
        "a sum over particles in sticking the landing",
        "pyro_vae/objectives/sticking_the_landing.py",
        "1 / log_weight.shape[0]",
        "1.0",
        "tests/objectives/test_sticking_the_landing.py::test_model_gradient_is_that_of_trace",
    ),
    Defect(
        "α − 1 for 1 − α",
        "pyro_vae/objectives/renyi.py",
        "        power = 1 - self.alpha\n",
        "        power = self.alpha - 1\n",
        "tests/objectives/test_renyi.py::test_limits",
    ),
    Defect(
        "TVO's covariance over K, not K − 1",
        "pyro_vae/objectives/tvo.py",
        "K / (K - 1)",
        "1.0",
        "tests/objectives/test_tvo.py::test_one_partition_of_two_particles_is_unbiased",
    ),
    Defect(
        "q pushed away in the wake",
        "pyro_vae/objectives/reweighted_wake_sleep.py",
        "wake_p + self.insomnia * wake_q",
        "wake_p - self.insomnia * wake_q",
        "tests/objectives/test_reweighted_wake_sleep.py::test_updates_against_exact_gradients",
    ),
    Defect(
        "a missing ½ in the KL of normals",
        "pyro_vae/closed_form.py",
        "0.5 * (ratio**2 + ((loc",
        "(ratio**2 + ((loc",
        "tests/test_closed_form.py::test_products_are_torchs",
    ),
    Defect(
        "the trace left out of the exact ELBO",
        "pyro_vae/closed_form.py",
        "-0.5 * ((residual**2).sum(-1) + spread)",
        "-0.5 * ((residual**2).sum(-1))",
        "tests/test_closed_form.py::test_evidence_is_elbo_plus_kl_to_the_posterior",
    ),
    Defect(
        "free bits clamped a datum",
        "pyro_vae/objectives/closed_form.py",
        "above = kl.detach().mean(0) > self.free_bits",
        "above = kl.detach() > self.free_bits",
        "tests/objectives/test_closed_form.py::test_free_bits_by_hand",
    ),
    Defect(
        "D for D/2 in a mean over pixels",
        "pyro_vae/textbook.py",
        "variance=lambda D, B, L: D / 2,",
        "variance=lambda D, B, L: D,",
        "tests/test_textbook.py::test_every_row_is_the_bound_it_names_whatever_the_measure",
    ),
    Defect(
        "the sign of a bias against log p(x)",
        "pyro_vae/comparison/values.py",
        "mean - truth.log_px",
        "truth.log_px - mean",
        "tests/comparison/test_values.py::TestTruth::test_bias_of_iwae_is_negative_and_shrinks",
    ),
    Defect(
        "the gradient of the loss for the bound's",
        "pyro_vae/comparison/_parameters.py",
        "scale = -1 / self.groups.num_data",
        "scale = 1 / self.groups.num_data",
        "tests/comparison/test_gradients.py::test_estimators_of_the_elbo_are_unbiased_and_others_are_not",
    ),
    Defect(
        "a reference taken as without error",
        "pyro_vae/comparison/_summary.py",
        "variance = average.error + reference.error",
        "variance = average.error",
        "tests/comparison/test_gradients.py::test_the_references_own_error_counts",
    ),
    Defect(
        "k̂ of the estimate's own draws",
        "pyro_vae/evaluation/importance.py",
        "seeded(derive_seed(seed, purpose, i, j)",
        'seeded(derive_seed(seed, "importance", i, j)',
        "tests/evaluation/test_importance.py::test_k_hat_is_of_draws_that_the_estimate_does_not_see",
    ),
    Defect(
        "another prior on the scale of a tail",
        "pyro_vae/evaluation/pareto.py",
        "PRIOR_SCALE = 3",
        "PRIOR_SCALE = 2",
        "tests/evaluation/test_pareto.py::test_equals_an_independent_implementation",
    ),
    Defect(
        "a sum for the mean in a point of the K-curve",
        "pyro_vae/evaluation/bound_curve.py",
        "moments.update(log_sums - level * math.log(2))",
        "moments.update(log_sums)",
        "tests/evaluation/test_bound_curve.py::test_streamed_points_are_means_over_groups",
    ),
    Defect(
        "every proposal of HMC accepted",
        "pyro_vae/evaluation/_hmc.py",
        "_where(level < log_ratio,",
        "_where(log_ratio > -math.inf,",
        "tests/evaluation/test_hmc.py::test_correlated_normal_is_left_invariant",
    ),
    Defect(
        "a transition under the temperature before",
        "pyro_vae/evaluation/ais.py",
        "bridge.density, point, betas[t], step",
        "bridge.density, point, betas[t - 1], step",
        "tests/evaluation/test_ais.py::test_mean_weight_is_the_evidence",
    ),
    Defect(
        "the mean of w for that of 1/w in the upper bound",
        "pyro_vae/evaluation/bidirectional.py",
        "upper=-summary(log_inverse)[0]",
        "upper=summary(-log_inverse)[0]",
        "tests/evaluation/test_bidirectional.py::test_forward_and_reverse_weights_have_the_right_mean",
    ),
    Defect(
        "a variance of ranks that is twice too large",
        "pyro_vae/evaluation/calibration.py",
        "variance = (levels**2 - 1) / 12",
        "variance = (levels**2 - 1) / 6",
        "tests/evaluation/test_calibration.py::test_scores_of_uniform_ranks_are_standard",
    ),
    Defect(
        "an error over draws that forgets how many they are",
        "pyro_vae/diagnosis/fit.py",
        "over_draws = float(draws.std() / math.sqrt(draws.numel()))",
        "over_draws = float(draws.std() / math.sqrt(len(data)))",
        "tests/diagnosis/test_fit.py::test_error_over_draws",
    ),
    Defect(
        "a summed-out latent drawn from its prior in a replicate",
        "pyro_vae/evaluation/simulation.py",
        "infer_discrete(given, first_available_dim=-2, temperature=1)",
        "_Draw({})(given)",
        "tests/evaluation/test_simulation.py::test_posterior_predictive_draws_enumerated_latents_given_x",
    ),
    Defect(
        "the pilot's draws in the estimate",
        "pyro_vae/evaluation/adaptive.py",
        'own = derive_seed(seed, "estimate", rung.method, j)',
        'own = derive_seed(seed, "pilot", rung.method)',
        "tests/evaluation/test_adaptive.py::test_estimates_are_from_draws_that_nothing_else_has_seen",
    ),
    Defect(
        "the shares of a mixture exchanged",
        "pyro_vae/evaluation/_proposals.py",
        "math.log(share) + terms.log_prior, math.log1p(-share) + log_s",
        "math.log1p(-share) + terms.log_prior, math.log(share) + log_s",
        "tests/evaluation/test_adaptive.py::test_mean_weight_is_the_evidence_and_weights_are_bounded",
    ),
    Defect(
        "a Jacobian left out of log q",
        "pyro_vae/evaluation/latent_space.py",
        "q = _total(run, run.latent | run.observed) + space.log_det(z)",
        "q = _total(run, run.latent | run.observed)",
        "tests/evaluation/test_latent_space.py::test_the_guides_density_is_of_the_same_vector",
    ),
    Defect(
        "errors of common draws added in squares",
        "pyro_vae/evaluation/paired.py",
        "errors = _error(a) + _error(b)",
        "errors = (_error(a) ** 2 + _error(b) ** 2).sqrt()",
        "tests/evaluation/test_paired.py::test_the_error_over_draws_is_an_upper_limit_under_common_noise",
    ),
    Defect(
        "the Jacobian of a paired difference with the wrong sign",
        "pyro_vae/paired_runs.py",
        "return -facts.num_dims",
        "return facts.num_dims",
        "tests/test_evaluate_command.py::test_a_density_of_dequantized_values_is_brought_to_levels",
    ),
    Defect(
        "a variance over draws divided twice",
        "pyro_vae/diagnosis/gap.py",
        "draws.std(1) / math.sqrt(num_samples)",
        "draws.std(1) / num_samples",
        "tests/diagnosis/test_gap.py::test_a_shifted_mean_is_amortization",
    ),
    Defect(
        "noise of its own for each q of a paired difference",
        "pyro_vae/diagnosis/_local.py",
        "with seeded(derive_seed(seed, j), x.device):",
        "with seeded(derive_seed(seed, j, len(rows)), x.device):",
        "tests/diagnosis/test_gap.py::test_the_amortization_gap_is_a_paired_difference",
    ),
    Defect(
        "a search that ends before it has begun",
        "pyro_vae/diagnosis/_local.py",
        "range(num_steps // 2, num_steps))",
        "range(0, num_steps // 8))",
        "tests/diagnosis/test_gap.py::test_a_wrong_variance_is_amortization",
    ),
    Defect(
        "log N left out of the mutual information",
        "pyro_vae/diagnosis/_aggregate.py",
        "    return own - (total - math.log(num_data))",
        "    return own - total",
        "tests/diagnosis/test_aggregate.py::test_mutual_information_is_that_of_the_mixture_by_quadrature",
    ),
    Defect(
        "a bias of the mutual information that is doubled",
        "pyro_vae/diagnosis/latents.py",
        "bias = 0.5 * (own - 1 / N)",
        "bias = own - 1 / N",
        "tests/diagnosis/test_latents.py::test_the_bias_is_what_is_found_where_the_aggregated_posterior_is_the_prior",
    ),
    Defect(
        "the sign of the distortion",
        "pyro_vae/diagnosis/latents.py",
        "_estimate(-draws.log_likelihood",
        "_estimate(draws.log_likelihood",
        "tests/diagnosis/test_latents.py::test_rate_and_distortion_in_closed_form",
    ),
    Defect(
        "classifiers fitted to the data that they are tested on",
        "pyro_vae/diagnosis/space.py",
        "classifier.fit(data[0], labels[0])",
        "classifier.fit(data[1], labels[1])",
        "tests/diagnosis/test_space.py::test_classifiers_are_fitted_to_the_training_data_alone",
    ),
    Defect(
        "p(z) left out of the ranked joint",
        "pyro_vae/evaluation/calibration.py",
        "weights.log_likelihood + weights.log_prior",
        "weights.log_likelihood",
        "tests/evaluation/test_calibration.py::test_the_prior_is_in_the_joint",
    ),
    Defect(
        "a second bar as long as the whole gap",
        "pyro_vae/diagnosis_figures.py",
        "axes.barh(i, total - first, left=first,",
        "axes.barh(i, total, left=first,",
        "tests/test_diagnosis_figures.py::test_the_two_parts_of_a_gap_are_stacked_to_the_whole",
    ),
    Defect(
        "data taken from the front of a split",
        "pyro_vae/diagnosis/diagnose.py",
        "return sorted(permutation(len(split), 0)[:count].tolist())",
        "return list(range(min(count, len(split))))",
        "tests/diagnosis/test_diagnose.py::test_data_are_random_and_named_by_their_place",
    ),
    Defect(
        "numbers of tensors frozen into a captured graph",
        "pyro_vae/capture.py",
        'CONSTRUCTORS = ("tensor", "as_tensor", "asarray", "new_tensor", "new")',
        "CONSTRUCTORS = ()",
        "tests/test_capture.py::test_a_read_on_the_host_is_refused_with_its_place[tensor_of_tensors]",
    ),
    Defect(
        "attributes that another function mentions left unwatched",
        "pyro_vae/guards.py",
        "        mentioned |= walk.found\n",
        "        return walk.guards\n",
        "tests/test_guards.py::test_a_change_is_seen[passed_on]",
    ),
    Defect(
        "batch statistics moved by a capture",
        "pyro_vae/captured_program.py",
        "if tensor._version != version or not torch.equal(tensor, value):",
        "if tensor._version != version:",
        "tests/test_compiled_svi.py::test_buffers_are_updated_once_a_step_and_not_by_capture_or_check",
    ),
    Defect(
        "the bias left out of a fast product",
        "pyro_vae/products.py",
        "(a, transposed, bias))",
        "(a, transposed, None))",
        "tests/test_products.py::test_products_are_the_same_up_to_rounding_and_the_given_graph_is_kept",
    ),
    Defect(
        "a later bad step for the first",
        "pyro_vae/cuda_step.py",
        "bad & (self.first < 0), self.count",
        "bad, self.count",
        "tests/test_cuda_step.py::test_bad_step_keeps_the_first",
    ),
    Defect(
        "a learning rate baked into a recorded step",
        "pyro_vae/cuda_step.py",
        '            group["lr"] = rate.tensor\n',
        "            pass\n",
        "tests/test_cuda_step.py::test_schedules_act",
    ),
    Defect(
        "a density in half precision",
        "guides/low_rank_normal.py",
        "    @in_full_precision\n    def log_prob",
        "    def log_prob",
        "tests/test_precision.py::test_draws_and_densities_are_float32",
    ),
    Defect(
        "a graph kept for a model that has changed",
        "pyro_vae/evaluation/_compiled.py",
        "its_key == key and program.holds()",
        "its_key == key",
        "tests/evaluation/test_compiled.py::test_a_graph_is_kept_while_the_model_is_what_it_was",
    ),
    Defect(
        "a block filled up at its front",
        "pyro_vae/evaluation/_compiled.py",
        "draws[:s] = value",
        "draws[-s:] = value",
        "tests/evaluation/test_compiled.py::test_graph_gives_the_eager_answer",
    ),
    Defect(
        "a biased graph taken for the model",
        "pyro_vae/evaluation/_compiled.py",
        "if not bool(close & unbiased):",
        "if not bool(close):",
        "tests/evaluation/test_compiled.py::test_a_graph_of_something_else_is_refused",
    ),
    Defect(
        "the encoder run twice on the pseudo-inputs",
        "models/priors/vamp.py",
        "        return uniform_mixture(self.posterior(self._pseudo_inputs()))",
        "        q, u = self.posterior(self._pseudo_inputs()).base_dist, self._pseudo_inputs()\n"
        "        scale = self.posterior(u).base_dist.scale\n"
        "        return uniform_mixture(dist.Normal(q.loc, scale).to_event(1))",
        "tests/priors/test_cost.py::test_vamp_runs_the_encoder_once_a_step_on_the_pseudo_inputs",
    ),
    Defect(
        "the module log_weights for its function",
        "pyro_vae/__init__.py",
        "sys.modules[__name__].__class__ = _Package",
        "pass",
        "tests/test_startup.py::test_names_do_not_depend_on_what_was_imported_before",
    ),
    Defect(
        "torchvision imported at the start",
        "pyro_vae/data/datasets.py",
        "import numpy as np\nimport torch\n",
        "import numpy as np\nimport torch\nimport torchvision\n",
        "tests/test_startup.py::test_all_public_names_load_little_that_torch_and_pyro_did_not",
    ),
    Defect(
        "a bad step counted as good",
        "pyro_vae/training.py",
        "num_good = len(steps) if bad is None else bad - self._num_read",
        "num_good = len(steps) - (bad is not None)",
        "tests/test_training_engines.py::test_a_bad_step_is_named_and_taken_back",
    ),
    Defect(
        "a run from before engines taken as compiled",
        "pyro_vae/run_training.py",
        'UNRECORDED = {"engine": "eager"',
        'UNRECORDED = {"engine": "compiled"',
        "tests/test_training_engines.py::test_a_run_from_before_engines_resumes_as_eager",
    ),
    Defect(
        "a parameter of two names stepped twice",
        "pyro_vae/compiled_svi.py",
        "for name in names.values()}",
        "for name in leaves}",
        "tests/test_compiled_svi.py::test_a_parameter_of_two_names_is_stepped_once",
    ),
    Defect(
        "momentum that stops where a step has no gradient",
        "pyro_vae/updates.py",
        "slopes[i] = torch.zeros_like(leaf)",
        "slopes[i] = None",
        "tests/test_compiled_svi.py::test_a_parameter_without_a_gradient_in_some_steps_moves_by_its_momentum",
    ),
    Defect(
        "an idle parameter left to the device",
        "pyro_vae/compiled_svi.py",
        "if idle := self._idle(program):",
        "if idle := None:",
        "tests/test_cuda_step.py::test_a_parameter_with_a_gradient_in_some_steps_alone_is_the_hosts",
    ),
    Defect(
        "a tall gradient left as the transpose of a wide one",
        "pyro_vae/products.py",
        "product = graph.call_function(aten.clone.default, (tall,), contiguous)",
        "product = tall",
        "tests/test_products.py::test_a_tall_gradient_of_many_data_is_computed_as_a_wide_one",
    ),
    Defect(
        "weight decay by the optimizer's class",
        "pyro_vae/fused_adam.py",
        'KERNELS[group["decoupled_weight_decay"]](',
        "KERNELS[type(optimizer) is AdamW](",
        "tests/test_fused_adam.py::test_the_decay_is_the_groups_own",
    ),
    Defect(
        "a buffer's memory given to a graph twice",
        "pyro_vae/compiled_svi.py",
        "if not buffers and not writes_arguments:",
        "if True:",
        "tests/test_compiled_svi.py::test_an_argument_in_the_memory_of_a_written_buffer_is_taken_eagerly",
    ),
    Defect(
        "a denoising guide scored on corrupted data",
        "pyro_vae/corruptions.py",
        'training = getattr(self.guide, "training", self.training)',
        "training = True",
        "tests/test_corruptions.py::test_the_guides_own_mode_decides",
    ),
    Defect(
        "an autoencoder chosen by its log-joint",
        "pyro_vae/training.py",
        "(weights.log_likelihood if point else weights.log_weight)",
        "weights.log_weight",
        "tests/test_training.py::test_a_point_is_chosen_by_its_reconstruction_and_nothing_is_called_a_bound",
    ),
    Defect(
        "tanh by a difference that cancels",
        "pyro_vae/cheap_forms.py",
        "SMALL = 0.25",
        "SMALL = 0.0",
        "tests/test_cheap_forms.py::test_relative_errors",
    ),
    Defect(
        "softplus without its correction",
        "pyro_vae/cheap_forms.py",
        "u.log() + (t - (u - 1)) / u",
        "u.log()",
        "tests/test_cheap_forms.py::test_relative_errors",
    ),
    Defect(
        "Adam's steps not counted by the direct kernel",
        "pyro_vae/fused_adam.py",
        "torch._foreach_add_(steps, 1)",
        "torch._foreach_add_(steps, 0)",
        "tests/test_fused_adam.py::test_steps_are_the_optimizers_own",
    ),
    Defect(
        "an optimizer's hooks passed by",
        "pyro_vae/fused_adam.py",
        "        any(hooks)\n",
        "        False\n",
        "tests/test_fused_adam.py::test_hooks_are_called",
    ),
    Defect(
        "a graph kept for parameters of another dtype",
        "pyro_vae/captured_program.py",
        "if tensor.dtype is not dtype or tensor.shape != shape:",
        "if tensor.shape != shape:",
        "tests/test_compiled_svi.py::test_a_parameter_of_another_dtype_or_shape_is_seen",
    ),
    Defect(
        "each of several intervals at 95 %",
        "pyro_vae/paired_runs.py",
        "level = 1 - (1 - LEVEL) / num_pairs",
        "level = LEVEL",
        "tests/test_paired_runs.py::test_the_interval_is_bonferronis",
    ),
    Defect(
        "scores of other weights in a report",
        "pyro_vae/report/subject.py",
        'if entry.get("weights_hash") == self.weights_hash',
        'if entry.get("weights_hash")',
        "tests/report/test_report.py::test_scores_of_other_weights_are_left_out",
    ),
    Defect(
        "a record that names a file elsewhere",
        "pyro_vae/evaluation/per_datum_record.py",
        r' or not re.fullmatch(r"[a-z]+-[0-9a-f]{12}\.safetensors", name)',
        "",
        "tests/evaluation/test_per_datum_record.py::test_no_file_outside_is_read",
    ),
    Defect(
        "a cell of a report's table not escaped",
        "pyro_vae/report/markup.py",
        'Markup("<td{}>{}</td>").format(_side(column), cell)',
        'Markup("<td{}>{}</td>").format(_side(column), Markup(cell))',
        "tests/report/test_markup.py::test_a_table_has_the_cells_of_the_terminals",
    ),
    Defect(
        "an offset dropped where the page's decoder indexes",
        "pyro_vae/report/decoder.js",
        "indices(node.shape, node.strides, node.offset)",
        "indices(node.shape, node.strides)",
        "tests/report/test_decoder_program.py::test_every_likelihood",
    ),
    Defect(
        "a grid's neighbours weighted the wrong way round",
        "pyro_vae/report/decoder.js",
        "weight *= up ? part : 1 - part;",
        "weight *= up ? 1 - part : part;",
        "tests/report/test_decoder_grid.py::test_between_nodes_it_is_interpolated",
    ),
    Defect(
        "a decoder's program checked where it was traced",
        "pyro_vae/report/decoder_program.py",
        "_check(program, model, z[1:])",
        "_check(program, model, z[:1])",
        "tests/report/test_decoder_program.py::test_a_decoder_that_is_no_program_is_refused",
    ),
    Defect(
        "a grid rounded down",
        "pyro_vae/report/decoder_grid.py",
        "np.rint(",
        "np.floor(",
        "tests/report/test_decoder_grid.py::test_a_node_is_the_decoders_own_to_half_a_level",
    ),
    Defect(
        "a grid decoded back to front",
        "pyro_vae/report/decoder_grid.py",
        "z[:, dims] = points",
        "z[:, dims] = points.flip(0)",
        "tests/report/test_decoder_grid.py::test_a_node_is_the_decoders_own_to_half_a_level",
    ),
    Defect(
        "the least active latents first",
        "pyro_vae/report/explorer.py",
        "activity.argsort(descending=True",
        "activity.argsort(descending=False",
        "tests/report/test_explorer.py::test_two_latents_have_a_map",
    ),
    Defect(
        "the difference of what was scored last",
        "pyro_vae/report/scores.py",
        "sorted(latest_first, key=lambda each: _rank(each[1]), reverse=True)",
        "latest_first",
        "tests/report/test_report.py::test_the_difference_is_of_test_data_and_of_most_of_them",
    ),
    Defect(
        "scores of data that are no longer there",
        "pyro_vae/report/subject.py",
        'return split if split.content_hash == protocol.get("content_hash") else None',
        "return split",
        "tests/report/test_report.py::test_scores_of_other_data_are_said_to_be_and_not_subtracted",
    ),
]


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda d: d.name)
def test_the_code_is_as_the_list_says(defect):
    """Fast: each right line stands in its file exactly once, and its test exists."""
    assert (ROOT / defect.file).read_text(encoding="utf-8").count(defect.right) == 1
    path, _, names = defect.test.partition("::")
    name = names.partition("[")[0].rpartition("::")[2]
    assert f"def {name}" in (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("defect", DEFECTS, ids=lambda d: d.name)
def test_a_planted_defect_is_noticed(defect, tmp_path):
    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, copy, ignore=ignored)
    assert _run(copy, defect.test) == 0, "the test fails without the defect"
    file = copy / defect.file
    text = file.read_text(encoding="utf-8").replace(defect.right, defect.wrong)
    file.write_text(text, encoding="utf-8")
    assert _run(copy, defect.test) == 1, f"{defect.test} does not notice {defect.name}"


def _run(copy: Path, test: str) -> int:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    return subprocess.run(command, cwd=copy, capture_output=True, check=False).returncode
