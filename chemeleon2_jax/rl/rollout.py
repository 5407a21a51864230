"""Steps of a trajectory: their probabilities under a policy, and the gradient of an objective over
them. `chain.roll_out` draws trajectories.

Letters as in `packing`; K steps of the sampler, of which the first K' draw noise: the others have
no probability.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from chemeleon2_jax.diffusion.gaussian import DenoiseFn, predictor
from chemeleon2_jax.diffusion.sampler import Sampler, log_probability, step_constants
from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.rows.rows import Rows


class Steps(NamedTuple):
    """Steps that draw noise, stacked over K': the index of the state where each starts, int32, and
    its constants. The state after it in the trajectory is what it drew.
    """

    start_index: jax.Array
    constants: Any


def drawn_steps(schedule: Schedule, sampler: Sampler) -> Steps:
    """Return the steps that have a probability.

    Raises:
        ValueError: none has.
    """
    count = sampler.num_drawn
    if count < 1:
        raise ValueError(
            f"{sampler.name} with steps {sampler.steps} and eta {sampler.eta:g} draws nothing, so "
            "that its steps have no probability: take 2 steps or more of a sampler that draws "
            "noise, with eta above 0"
        )
    if sampler.num_remembered:
        raise ValueError(
            f"steps of {sampler.name} depend on earlier ones, so that a state alone has no "
            "probability: take another sampler"
        )
    constants = step_constants(schedule, sampler)
    kept = jax.tree.map(lambda values: jnp.asarray(values[:count]), constants)
    return Steps(jnp.arange(count, dtype=jnp.int32), kept)


def score_step(
    denoise: DenoiseFn,
    states: jax.Array,
    step: Steps,
    *,
    rows: Rows,
    sampler: Sampler,
    target: str = "eps",
) -> jax.Array:
    """Log-probability (R, S) of one step of a trajectory's states (K + 1, R, T, L) under a policy:
    the mean over a crystal's atoms and L.

    Drawing and scoring read the same `Sampler.transition`.
    """
    # Indexed step by step: slices of all starts and ends would be two more copies of the states.
    start = jax.lax.dynamic_index_in_dim(states, step.start_index, keepdims=False)
    end = jax.lax.dynamic_index_in_dim(states, step.start_index + 1, keepdims=False)
    predict = predictor(denoise, target=target, rows=rows)
    return log_probability(sampler.transition(predict, start, step.constants), end, rows)


def accumulate(
    objective: Callable[[Any, Any], tuple[jax.Array, Any]], params: Any, inputs: Any
) -> tuple[Any, Any]:
    """Sum the gradients of an objective over steps, one step at a time.

    The activations of a step are freed before the next, so that the memory does not depend on the
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
