"""A trajectory's steps: the probability of each under a policy, and the gradient of an objective
over them. `sampler.roll_out` draws trajectories.

Letters as in `packing`; K steps of the sampler, of which K' have noise: DDIM's last has none, and a
step without noise has no probability.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from chemeleon2_jax.diffusion.gaussian import DenoiseFn
from chemeleon2_jax.diffusion.sampler import (
    SamplerConfig,
    StepConstants,
    log_probability,
    step_constants,
    transition,
)
from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.rows.rows import Rows


class Steps(NamedTuple):
    """Steps that have noise, stacked over K': the index of the state where each starts, int32, and
    its constants. The one after it in the trajectory is where it went.
    """

    start_index: jax.Array
    constants: StepConstants


def noisy_steps(schedule: Schedule, config: SamplerConfig) -> Steps:
    """Return the steps that have a probability.

    Raises:
        ValueError: none has: DDIM with eta 0 is deterministic.
    """
    if config.sampler == "ddim" and config.eta == 0:
        raise ValueError("DDIM with eta 0 draws nothing: its steps have no probability; set eta")
    constants = step_constants(schedule, config)
    # The last step of both samplers adds no noise.
    count = config.steps - 1
    if count < 1:
        raise ValueError("a chain of one step draws nothing: set steps to 2 or more")
    kept = jax.tree.map(lambda values: jnp.asarray(values[:count]), constants)
    return Steps(jnp.arange(count, dtype=jnp.int32), kept)


def score_step(
    denoise: DenoiseFn,
    states: jax.Array,
    step: Steps,
    *,
    rows: Rows,
    sampler: str,
    target: str = "eps",
) -> jax.Array:
    """Log-probability (R, S) of one step of a trajectory's states (K + 1, R, T, L) under a policy:
    the mean over a crystal's atoms and L.

    Drawing and scoring read the same `transition`.
    """
    # Taken out one by one: slices of all starts and ends would be two more copies of the states.
    start = jax.lax.dynamic_index_in_dim(states, step.start_index, keepdims=False)
    end = jax.lax.dynamic_index_in_dim(states, step.start_index + 1, keepdims=False)
    gaussian = transition(denoise, start, step.constants, rows=rows, sampler=sampler, target=target)
    return log_probability(gaussian, end, rows)


def accumulate(
    objective: Callable[[Any, Any], tuple[jax.Array, Any]], params: Any, inputs: Any
) -> tuple[Any, Any]:
    """Sum the gradients of an objective over steps, one step at a time.

    What a step needs for its gradient is gone before the next: the memory does not depend on the
    number of steps.

    Args:
        objective: (params, one step's inputs) -> (value, metrics).
        params: of the policy.
        inputs: stacked over steps.

    Returns:
        The sum of the gradients, and the metrics stacked over steps.
    """

    def body(total: Any, step: Any) -> tuple[Any, Any]:
        gradient, metrics = jax.grad(objective, has_aux=True)(params, step)
        return jax.tree.map(jnp.add, total, gradient), metrics

    return jax.lax.scan(body, jax.tree.map(jnp.zeros_like, params), inputs)
