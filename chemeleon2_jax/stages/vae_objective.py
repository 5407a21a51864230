"""The VAE's training objective: weights of the loss terms, and what changes with the step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from chemeleon2_jax.models.losses import CoordsLoss, LossWeights
from chemeleon2_jax.rows.batch import Batch, BatchSource
from chemeleon2_jax.training.stage import LossFn


@dataclass(frozen=True)
class VAEObjective:
    """Weights and options of the loss; the step counts from 0.

    Attributes:
        weights: of the terms, after any warm-up.
        coords: comparison of coordinates, after any transition.
        kl_warmup_steps: steps in which the KL weight rises linearly from 0; 0 for none.
        periodic_from: step from which coordinates are compared modulo the cell; 0 for never. From
            the first step on, that comparison stays at the level of guessing.
        periodic_over: steps of the transition to it, in which its share rises linearly.
        latent_noise: noise on the decoder's input in training, over the spread of each channel.
    """

    weights: LossWeights
    coords: CoordsLoss
    kl_warmup_steps: int = 0
    periodic_from: int = 0
    periodic_over: int = 0
    latent_noise: float = 0.0

    @staticmethod
    def from_config(module: ConfigDict) -> VAEObjective:
        """Read the objective off `vae_module`."""
        coords = module.coords_loss
        return VAEObjective(
            weights=LossWeights(**module.loss_weights.to_dict()),
            coords=CoordsLoss(
                coords.unit, 1.0 if coords.periodic_from else 0.0, coords.shift_weight
            ),
            kl_warmup_steps=module.kl_warmup_steps,
            periodic_from=coords.periodic_from,
            periodic_over=coords.periodic_over,
            latent_noise=module.latent_noise,
        )

    @property
    def needs_step(self) -> bool:
        """Whether weights or options change during training."""
        return bool(self.kl_warmup_steps or self.periodic_from)

    def at(self, step: Any) -> VAEObjective:
        """Return the objective of a step, () int32."""
        weights, coords = self.weights, self.coords
        if self.kl_warmup_steps:
            share = jnp.minimum(step / self.kl_warmup_steps, 1.0)
            weights = replace(weights, kl=weights.kl * share)
        if self.periodic_from:
            share = (step - self.periodic_from + 1) / (self.periodic_over + 1)
            coords = replace(coords, periodic=jnp.clip(share, 0.0, 1.0))
        return replace(self, weights=weights, coords=coords)


@dataclass(frozen=True)
class StepBatches:
    """Batches of (rows, step), for a loss that changes with the step."""

    source: BatchSource

    @property
    def steps_per_epoch(self) -> int:
        """Training steps in one pass over the data."""
        return self.source.steps_per_epoch

    def batch(self, step: int) -> Batch:
        """Return the batch of a step, with the step as a scalar beside it."""
        batch = self.source.batch(step)
        return replace(batch, arrays=(batch.arrays, np.int32(step)))


def with_steps(
    loss_fn: Callable[..., Any], batches: BatchSource, objective: VAEObjective
) -> tuple[LossFn, BatchSource]:
    """Return the loss and the batches of a run.

    Args:
        loss_fn: `(params, frozen, key, rows, *, objective)`.
        batches: of rows.
        objective: its own `at` each step is that of `loss_fn`.
    """
    if not objective.needs_step:

        def constant(params: Any, frozen: Any, key: Any, rows: Any) -> Any:
            return loss_fn(params, frozen, key, rows, objective=objective)

        return constant, batches

    def changing(params: Any, frozen: Any, key: Any, batch: Any) -> Any:
        rows, step = batch
        return loss_fn(params, frozen, key, rows, objective=objective.at(step))

    return changing, StepBatches(batches)
