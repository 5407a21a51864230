"""Group relative policy optimisation over a diffusion chain (Shao et al. 2024; Black et al. 2024).

Each denoising step is an action, its log-probability the mean over a crystal's atoms and latent
dimensions of the Gaussian log density (`diffusion.sampler.log_probability`). The objective of a
chain is the mean over its steps of `step_terms`; steps without noise are left out of the sum, not
of the number that divides it, as in the original.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

SCOPES = ("group", "batch")

LARGEST_LOG_RATIO = 20.0
"""Bound on differences of log-probabilities: exp must not overflow."""

EPSILON = 1e-4
"""Smallest standard deviation of rewards that gives advantages; also added to larger ones."""


class StepTerms(NamedTuple):
    """Loss of one denoising step and its terms; scalars, weighted means over crystals.

    The rollout policy is the one that drew the chain.

    Attributes:
        loss: -surrogate + kl_weight * kl - entropy_weight * entropy.
        surrogate: the clipped objective, to be maximised.
        kl: estimate of the penalised divergence: from the reference policy if there is one, else
            from the rollout policy.
        kl_rollout: estimate of the divergence from the rollout policy.
        entropy: minus the log-probability.
        ratio: of the probabilities under the trained and the rollout policy.
        clip_share: share of crystals with a ratio outside the clipping range.
    """

    loss: jax.Array
    surrogate: jax.Array
    kl: jax.Array
    kl_rollout: jax.Array
    entropy: jax.Array
    ratio: jax.Array
    clip_share: jax.Array


def advantages(
    rewards: jax.Array, *, group_size: int, scope: str = "group", eps: float = EPSILON
) -> jax.Array:
    """Standardise rewards: (reward - mean) / (std + eps), with the unbiased standard deviation.

    Args:
        rewards: (B * group_size,), the samples of each prompt one after another.
        group_size: samples of a prompt.
        scope: "group" standardises over the samples of each prompt, "batch" over all of them.
        eps: below this standard deviation the advantages are 0.

    Returns:
        (B * group_size,).

    Raises:
        ValueError: an unknown scope, a group size that does not divide the samples, or groups of
            one sample, which have no spread, with the scope "group".
    """
    if scope not in SCOPES:
        raise ValueError(f"scope {scope!r} of advantages is unknown; choose {' or '.join(SCOPES)}")
    if group_size < 1 or rewards.shape[0] % group_size:
        raise ValueError(f"{rewards.shape[0]} samples are not whole groups of {group_size}")
    if scope == "group" and group_size == 1:
        raise ValueError(
            "a group of one sample has no spread: use the scope 'batch', or more samples"
        )
    groups = rewards.reshape(-1, group_size) if scope == "group" else rewards.reshape(1, -1)
    if groups.shape[1] == 1:
        return jnp.zeros_like(rewards)
    centred = groups - groups.mean(1, keepdims=True)
    std = groups.std(1, ddof=1, keepdims=True)
    return jnp.where(std < eps, 0.0, centred / (std + eps)).reshape(-1)


def step_terms(
    log_prob: jax.Array,
    old_log_prob: jax.Array,
    advantage: jax.Array,
    *,
    clip_ratio: float,
    kl_weight: float = 0.0,
    entropy_weight: float = 0.0,
    reference_log_prob: jax.Array | None = None,
    weights: jax.Array | None = None,
) -> StepTerms:
    """Return the loss of one denoising step and its terms.

    The surrogate is that of proximal policy optimisation, min(r A, clip(r, 1 - c, 1 + c) A)
    (Schulman et al. 2017), the divergence exp(-d) - 1 + d with d the difference of the
    log-probabilities, which is never negative (Schulman's k3).

    Args:
        log_prob: log-probability of the step under the trained policy, of any shape.
        old_log_prob: under the rollout policy, of the same shape.
        advantage: of the same shape.
        clip_ratio: c.
        kl_weight: weight of the divergence.
        entropy_weight: weight of the entropy.
        reference_log_prob: under the reference policy, of the same shape; None penalises the
            divergence from the rollout policy.
        weights: 1 for a crystal, 0 for an empty slot, whose numbers are ignored; None is 1.
    """
    weights = jnp.ones_like(log_prob) if weights is None else weights.astype(log_prob.dtype)
    total = jnp.maximum(weights.sum(), 1.0)
    is_used = weights > 0

    def mean(values: jax.Array) -> jax.Array:
        return jnp.sum(values * weights) / total

    def bounded(difference: jax.Array) -> jax.Array:
        return jnp.clip(difference, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)

    def divergence(difference: jax.Array) -> jax.Array:
        return mean(jnp.expm1(-difference) + difference)

    log_prob = jnp.where(is_used, log_prob, 0.0)
    log_ratio = bounded(jnp.where(is_used, log_prob - old_log_prob, 0.0))
    advantage = jnp.where(is_used, advantage, 0.0)
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - clip_ratio, 1.0 + clip_ratio)
    surrogate = mean(jnp.minimum(ratio * advantage, clipped * advantage))
    kl_rollout = divergence(log_ratio)
    kl = kl_rollout
    if reference_log_prob is not None:
        kl = divergence(bounded(jnp.where(is_used, log_prob - reference_log_prob, 0.0)))
    entropy = mean(-log_prob)
    return StepTerms(
        loss=-surrogate + kl_weight * kl - entropy_weight * entropy,
        surrogate=surrogate,
        kl=kl,
        kl_rollout=kl_rollout,
        entropy=entropy,
        ratio=mean(ratio),
        clip_share=mean((ratio != clipped).astype(log_prob.dtype)),
    )
