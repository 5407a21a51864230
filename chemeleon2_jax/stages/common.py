"""Shared steps of the stages' builders, and sums over batches and processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.common.randomness import named_key
from chemeleon2_jax.data.augment import Augmentation
from chemeleon2_jax.models.abstract import count_parameters
from chemeleon2_jax.models.losses import Terms
from chemeleon2_jax.models.meta import LDMMeta, ModelMeta
from chemeleon2_jax.pretrained.loading import LDMParts, open_model
from chemeleon2_jax.torch_format.model import OpenModel
from chemeleon2_jax.training.checkpoint_reader import DIRECTORY, complete_steps
from chemeleon2_jax.training.config import PRECISIONS
from chemeleon2_jax.training.parallel import replicated
from chemeleon2_jax.training.stage import ItemsFn, Stage, params_and_ema
from chemeleon2_jax.workers import WorkerPool

VALIDATION_SEED = 0
"""Of the times, noises and samples of a validation: the same in all runs."""


def compute_dtype(config: ConfigDict) -> Any:
    """Return the dtype of `trainer.precision`.

    Raises:
        ConfigError: an unknown precision.
    """
    precision = config.trainer.precision
    if precision not in PRECISIONS:
        raise ConfigError(f"trainer.precision is {precision!r}; it is {' or '.join(PRECISIONS)}")
    return jnp.dtype(PRECISIONS[precision])


def augmentation(options: ConfigDict) -> Augmentation:
    """Read the `augmentation` block of a stage."""
    return Augmentation(options.rotate, options.translate, options.per_crystal)


def make_pool(config: ConfigDict) -> WorkerPool:
    """Return worker processes for work on the host; they start at the first use."""
    return WorkerPool(config.data.num_workers or None)


def resumed_from(resume_dir: Path | None) -> OpenModel | None:
    """Open the run to resume; None if there is none, or it has no whole checkpoint."""
    if resume_dir is None or not complete_steps(resume_dir / DIRECTORY):
        return None
    return open_model(resume_dir)


def open_start(path: str, *, key: str, stage: str, vae: str = "") -> OpenModel:
    """Open the model that a stage starts from.

    Args:
        path: of the model, from the config.
        key: of `path` in the config, for messages.
        stage: that trains such models, for messages.
        vae: see `open_model`.

    Raises:
        ConfigError: the path is empty.
        CheckpointError: no model there, or a broken one.
    """
    if not path:
        kinds = {"train_vae": "trained VAE", "train_ldm": "latent diffusion model"}
        raise ConfigError(
            f"{key} is empty: give the run folder of a {kinds[stage]}, "
            f"--config.{key}=logs/{stage}/runs/<run>"
        )
    return open_model(path, vae=vae)


def new_module(
    module: Callable[..., nnx.Module], sizes: Any, config: ConfigDict
) -> tuple[Any, Any]:
    """Return the graph definition of `module(sizes)` and its first parameters.

    Raises:
        ConfigError: sizes that no such module can have.
    """
    rngs, dtype = nnx.Rngs(named_key(config.seed, "init")), compute_dtype(config)
    try:
        model = module(sizes, rngs=rngs, dtype=dtype)
    except ValueError as error:
        block = config.task_name.removeprefix("train_")
        raise ConfigError(f"{block}_module: {error}") from error
    graphdef, params = nnx.split(model, nnx.Param)
    log_size(type(model).__name__, params)
    return graphdef, params


def ldm_meta(ldm: LDMParts, ema: ConfigDict) -> LDMMeta:
    """Return the meta of an LDM in training, which samples with its EMA weights if it has any."""
    return LDMMeta(
        dit=ldm.sizes,
        diffusion=ldm.diffusion,
        latent_std=ldm.latent_std,
        latent_channels=ldm.latent_channels,
        sample_weights="ema" if ema.decay > 0 else "raw",
    )


def log_size(name: str, params: Any) -> None:
    """Log the number of a model's parameters."""
    logging.info("%s with %.3g million parameters", name, count_parameters(params) / 1e6)


def make_stage(config: ConfigDict, meta: ModelMeta, *, params: Any, **fields: Any) -> Stage:
    """Return a stage with the fields that are the same in all stages.

    Args:
        config: of the run.
        meta: of the model.
        params: its first parameters, as nnx state.
        fields: the other fields of `Stage`.
    """
    return Stage(
        name=meta.stage,
        init_params=jax.device_get(params),  # on the host: the training state holds its own
        meta=meta.to_json(),
        monitor=config.callbacks.model_checkpoint.monitor,
        mode=config.callbacks.model_checkpoint.mode,
        **fields,
    )


def items_with(**frozen: Any) -> ItemsFn:
    """Return `Stage.items` with frozen trees beside the trained ones."""
    return lambda params, ema: {**params_and_ema(params, ema), **frozen}


def evaluator(fn: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Jit a function of sharded rows; its result is whole on every device, so that each host can
    read it.
    """
    return jax.jit(fn, out_shardings=replicated(mesh))


def sum_terms(batches: Iterable[Terms]) -> dict[str, tuple[float, float]]:
    """Add up the (sum, weight) terms of batches, in float64 on the host."""
    totals: dict[str, np.ndarray] = {}
    # All at once: the device computes the next batch while the last is on its way.
    for terms in jax.device_get(list(batches)):
        for name, pair in terms.items():
            totals[name] = totals.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
    return {name: (float(total), float(weight)) for name, (total, weight) in totals.items()}
