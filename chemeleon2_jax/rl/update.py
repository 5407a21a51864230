"""One pass over a recorded trajectory: log-probabilities, the loss and its gradient.

The old log-probabilities come from this same program, run with the policy that drew the chain, so
that the ratio of the first update is exactly 1. Another program, or another layout of the rows,
changes log p by as much as the clipping range: the standard deviation of the last step is 0.01.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from chemeleon2_jax.diffusion.gaussian import DenoiseFn
from chemeleon2_jax.diffusion.sampler import Sampler
from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.rl.grpo import StepTerms, step_terms
from chemeleon2_jax.rl.rollout import accumulate, drawn_steps, score_step
from chemeleon2_jax.rows.rows import Rows

PolicyFn = Callable[[Any, Rows], DenoiseFn]
"""(params, rows) -> the policy's denoise function over these rows."""


@dataclass(frozen=True)
class Objective:
    """Weights of the loss; see `grpo.step_terms`."""

    clip_ratio: float = 1e-3
    kl_weight: float = 1.0
    entropy_weight: float = 1e-5


class Chunk(NamedTuple):
    """Crystals of a rollout that one pass takes.

    Attributes:
        rows: sizes, conditions and atom types.
        states: (K + 1, R, T, L), the trajectory.
        old_log_probs: (K', R, S), under the rollout policy; ignored if `is_drawn_with`.
        advantages: (R, S).
        weights: (R, S), 1 for a crystal that counts, else 0.
        share: () float32, share of this chunk's weights in its mini-batch.
        is_drawn_with: () bool, whether the parameters are those that drew the chain.
    """

    rows: Rows
    states: jax.Array
    old_log_probs: jax.Array
    advantages: jax.Array
    weights: jax.Array
    share: jax.Array
    is_drawn_with: jax.Array


class Pass(NamedTuple):
    """Results of a pass.

    Attributes:
        gradient: of the chunk's share of the mini-batch's loss.
        metrics: scalars by name, times `share`; those of a mini-batch's chunks add up.
        log_probs: (K', R, S), under the parameters of the pass.
    """

    gradient: Any
    metrics: dict[str, jax.Array]
    log_probs: jax.Array


def make_pass(
    policy_fn: PolicyFn,
    *,
    schedule: Schedule,
    sampler: Sampler,
    objective: Objective,
    target: str = "eps",
    reference_fn: PolicyFn | None = None,
) -> Callable[[Any, Any, Chunk], Pass]:
    """Return `(params, reference_params, chunk) -> Pass`, to be jitted.

    The loss is the sum over the steps with noise, divided by the number of all steps, as in the
    original. With `reference_fn` the penalised divergence is the one from the policy with
    `reference_params`, else from the rollout policy.

    Raises:
        ValueError: a sampler without steps that have a probability.
    """
    steps = drawn_steps(schedule, sampler)

    def score(policy: PolicyFn, params: Any, chunk: Chunk, step: Any) -> jax.Array:
        return score_step(
            policy(params, chunk.rows),
            chunk.states,
            step,
            rows=chunk.rows,
            sampler=sampler,
            target=target,
        )

    def run(params: Any, reference_params: Any, chunk: Chunk) -> Pass:
        def step_loss(params: Any, inputs: Any) -> tuple[jax.Array, tuple[StepTerms, jax.Array]]:
            step, old = inputs
            log_prob = score(policy_fn, params, chunk, step)
            reference = None
            if reference_fn is not None:
                reference = score(reference_fn, reference_params, chunk, step)
            terms = step_terms(
                log_prob,
                jnp.where(chunk.is_drawn_with, jax.lax.stop_gradient(log_prob), old),
                chunk.advantages,
                clip_ratio=objective.clip_ratio,
                kl_weight=objective.kl_weight,
                entropy_weight=objective.entropy_weight,
                reference_log_prob=reference,
                weights=chunk.weights,
            )
            return chunk.share * terms.loss / sampler.steps, (terms, log_prob)

        inputs = (steps, chunk.old_log_probs)
        gradient, (terms, log_probs) = accumulate(step_loss, params, inputs)
        metrics = _means(terms, sampler.steps, with_reference=reference_fn is not None)
        return Pass(gradient, {k: chunk.share * v for k, v in metrics.items()}, log_probs)

    return run


def _means(terms: StepTerms, num_steps: int, *, with_reference: bool) -> dict[str, jax.Array]:
    """Means over the steps with noise; the loss as it is differentiated."""
    means = {name: values.mean() for name, values in terms._asdict().items()}
    metrics = {
        "loss": terms.loss.sum() / num_steps,
        "surrogate": means["surrogate"],
        "kl_rollout": means["kl_rollout"],
        "log_prob": -means["entropy"],
        "ratio": means["ratio"],
        "clip_share": means["clip_share"],
    }
    return metrics | ({"kl_reference": means["kl"]} if with_reference else {})
