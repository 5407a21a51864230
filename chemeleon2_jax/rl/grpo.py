"""Group relative policy optimisation over a diffusion chain (Shao et al. 2024; Black et al. 2024).

Each denoising step is an action, its log-probability the mean over a crystal's atoms and latent
dimensions of the Gaussian log density (`diffusion.sampler.log_probability`). The objective of a
chain is the mean over its steps of `step_terms`; a last step without noise is left out of the sum,
not of the number that it is divided by, as in the original.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

SCOPES = ("group", "batch")

LARGEST_LOG_RATIO = 20.0
"""Where log-probabilities differ by more, a policy is lost anyway, but exp would overflow."""

EPSILON = 1e-4
"""Rewards with a smaller standard deviation give no advantages; added to it elsewhere."""


class StepTerms(NamedTuple):
    """Of one denoising step; scalars, weighted means over crystals.

    Attributes:
        loss: -surrogate + kl_weight * kl - entropy_weight * entropy.
        surrogate: the clipped objective, to be maximised.
        kl: estimate of the divergence that is penalised: from the reference policy where there is
            one, else from the policy that the chain was drawn with.
        kl_rollout: estimate of the divergence from the policy that the chain was drawn with.
        entropy: minus the log-probability.
        ratio: of the probabilities now and when drawn.
        clip_share: share of crystals whose ratio is outside the clipping range.
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
        scope: "group", over the samples of each prompt, or "batch", over all of them.
        eps: where the standard deviation is smaller, the advantages are 0.

    Returns:
        (B * group_size,).

    Raises:
        ValueError: an unknown scope, groups that do not divide the samples, or groups of one,
            which have no spread, with the scope "group".
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
    """Return the loss of one denoising step and what it is made of.

    The surrogate is that of proximal policy optimisation, min(r A, clip(r, 1 - c, 1 + c) A)
    (Schulman et al. 2017), the divergence exp(-d) - 1 + d with d the difference of the
    log-probabilities, which is never negative (Schulman's k3).

    Args:
        log_prob: log-probability of the step under the policy that is trained, of any shape.
        old_log_prob: under the policy that the chain was drawn with, of the same shape.
        advantage: of the same shape.
        clip_ratio: c.
        kl_weight: weight of the divergence.
        entropy_weight: weight of the entropy.
        reference_log_prob: under a policy to stay near to, of the same shape; None takes the one
            that the chain was drawn with.
        weights: 1 for a crystal, 0 for an empty slot, whose numbers are not looked at; None is 1.
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
