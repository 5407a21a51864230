"""The predictor stage: properties of crystals from the latents of a frozen VAE.

What the VAE knows of a crystal never changes in training. It is computed once, and a step is one of
a small network over vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import nnx
from ml_collections import ConfigDict

from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.common.randomness import named_key
from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.crystals.visualize import parity_plot
from chemeleon2_jax.data.loader import Loader
from chemeleon2_jax.models.abstract import count_parameters
from chemeleon2_jax.models.meta import ModelMeta
from chemeleon2_jax.models.predictor import Predictor, pool_features, standardise, to_units
from chemeleon2_jax.models.sizes import PredictorSizes, Target
from chemeleon2_jax.pretrained.loading import VAEParts, open_model, vae_of
from chemeleon2_jax.rows.batch import Batch
from chemeleon2_jax.runs.config import split_names
from chemeleon2_jax.stages.common import (
    StageData,
    compute_dtype,
    evaluator,
    load_data,
    read_statistics,
    resumed_from,
)
from chemeleon2_jax.torch_format.model import OpenModel
from chemeleon2_jax.training.parallel import replicate
from chemeleon2_jax.training.stage import Stage, Validation, params_and_ema


@dataclass(frozen=True)
class PooledBatches:
    """Training batches of vectors, in the order in which `loader` would take the crystals.

    Attributes:
        loader: of the crystals.
        features: (G, W) float32, what is known of them.
        targets: (G, P) float32, standardised.
        num_devices: that the first axis is sharded over.
    """

    loader: Loader
    features: np.ndarray
    targets: np.ndarray
    num_devices: int

    @property
    def steps_per_epoch(self) -> int:
        """Training steps in one pass over the data."""
        return self.loader.steps_per_epoch

    def batch(self, step: int) -> Batch:
        """The share of this process in the batch of a step."""
        indices = self.loader.indices(step)
        return Batch(self._local(indices), len(indices))

    def _local(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Arrays of this process, filled up with weight 0 to what the devices divide."""
        missing = -len(indices) % self.num_devices
        filled = np.concatenate([indices, np.repeat(indices[:1], missing)])
        weights = (np.arange(len(filled)) < len(indices)).astype(np.float32)
        index, count = jax.process_index(), jax.process_count()
        share = slice(len(filled) * index // count, len(filled) * (index + 1) // count)
        chosen = filled[share]
        return {
            "features": self.features[chosen],
            "targets": self.targets[chosen],
            "crystal_id": chosen.astype(np.int32),
            "weights": weights[share],
        }


def build_predictor(config: ConfigDict, *, resume_dir: Path | None = None) -> Stage:
    """Build the stage; see `stages.build`."""
    module, dtype = config.predictor_module, compute_dtype(config)
    names = split_names(config.data.target_condition)
    if not names:
        raise ConfigError(
            "data.target_condition is empty: name the columns to predict, as in "
            "--config.data.target_condition=formation_energy_per_atom"
        )
    resumed = resumed_from(resume_dir)
    model_with_vae = _open_vae(module) if resumed is None else resumed
    vae = vae_of(model_with_vae, dtype=dtype)
    data = load_data(config, edges=vae.sizes.encoder.needs_edges)
    key = "predictor_module.target_conditions"
    moments = read_statistics(module.target_conditions, names, data.train, key=key)
    try:
        sizes = PredictorSizes(
            latent_dim=vae.sizes.latent_dim,
            encoder_dim=vae.sizes.encoder.d_model,
            targets=tuple(Target(name, *moments[name]) for name in names),
            reduce=module.reduce,
            use_encoder_features=module.use_encoder_features,
        )
    except ValueError as error:
        raise ConfigError(f"predictor_module: {error}") from error
    model = Predictor(sizes, rngs=nnx.Rngs(named_key(config.seed, "init")), dtype=dtype)
    graphdef, params = nnx.split(model, nnx.Param)
    logging.info("Predictor with %.3g thousand parameters", count_parameters(params) / 1e3)
    vae = replace(vae, params=replicate(vae.params, data.mesh))

    def loss_fn(params: Any, frozen: Any, key: jax.Array, batch: Any) -> Any:
        del frozen
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch["crystal_id"])
        found = nnx.merge(graphdef, params).head(batch["features"], dropout_keys=keys)
        errors = (found - batch["targets"]) ** 2 * batch["weights"][:, None]
        means = errors.sum(0) / batch["weights"].sum()
        terms = {f"loss_{t.name}": means[i] for i, t in enumerate(sizes.targets)}
        return means.mean(), terms

    meta = ModelMeta(
        stage="train_predictor",
        vae=vae.sizes,
        predictor=sizes,
        size_table=data.size_table,
        config=config.to_dict(),
        vae_config=model_with_vae.meta.config_of_vae,
    )
    predict = _make_predict(graphdef, pool(data, vae, sizes, data.val_batches()), data)
    known = _in_units(data.val, names)

    def validate(params: Any, _: Mapping[str, Any]) -> Validation:
        predicted = predict(params)
        return Validation(
            _scores(predicted, known, sizes),
            _parity_plots(to_units(predicted, sizes), known, sizes),
        )

    return Stage(
        name="train_predictor",
        init_params=jax.device_get(params),
        loss_fn=loss_fn,
        batches=PooledBatches(
            data.loader(config.seed),
            pool(data, vae, sizes, data.train_batches()),
            standardise(_in_units(data.train, names), sizes).astype(np.float32),
            data.mesh.devices.size,
        ),
        meta=meta.to_json(),
        validate=validate,
        monitor=config.callbacks.model_checkpoint.monitor,
        mode=config.callbacks.model_checkpoint.mode,
        value_names=value_names(names),
        items=lambda params, ema: {**params_and_ema(params, ema), "vae": vae.params},
        shown={
            "grad_norm": "gradient",
            **{f"val/mae_{name}": f"MAE {name}" for name in names},
        },
        precision=config.trainer.precision,
    )


def _open_vae(module: ConfigDict) -> OpenModel:
    if not module.vae_ckpt_path:
        raise ConfigError(
            "predictor_module.vae_ckpt_path is empty: give the run folder of a trained VAE, "
            "--config.predictor_module.vae_ckpt_path=logs/train_vae/runs/<run>"
        )
    return open_model(module.vae_ckpt_path)


def value_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the values of a validation."""
    of_targets = (f"val/{kind}_{name}" for name in names for kind in ("mae", "r2"))
    return ("val/total_loss", *of_targets)


def pool(
    data: StageData, vae: VAEParts, sizes: PredictorSizes, batches: Iterable[Any]
) -> np.ndarray:
    """What the VAE knows of each crystal of some batches, in order: (G, W) float32."""
    jitted = evaluator(
        lambda params, rows: pool_features(vae.module(params).encode(rows), rows, sizes), data.mesh
    )
    parts = []
    for rows, where, _ in batches:
        parts.append(where.take_slots(jax.device_get(jitted(vae.params, rows))))
    return np.concatenate(parts)


def _make_predict(graphdef: Any, features: np.ndarray, data: StageData) -> Callable[[Any], Any]:
    """(params) -> standardised predictions (G, P) for all of `features`."""
    on_devices = replicate(features, data.mesh)
    jitted = evaluator(lambda params, x: nnx.merge(graphdef, params).head(x), data.mesh)
    return lambda params: np.asarray(jitted(params, on_devices), np.float64)


def _in_units(crystals: Crystals, names: tuple[str, ...]) -> np.ndarray:
    return np.stack([crystals.targets[name].astype(np.float64) for name in names], -1)


def _scores(found: np.ndarray, known: np.ndarray, sizes: PredictorSizes) -> dict[str, float]:
    """Loss as in training, and mean absolute error and R2 of each target in its unit."""
    errors = to_units(found, sizes) - known
    values = {"val/total_loss": float(np.mean((found - standardise(known, sizes)) ** 2))}
    for index, target in enumerate(sizes.targets):
        spread = float(np.var(known[:, index]))
        values[f"val/mae_{target.name}"] = float(np.abs(errors[:, index]).mean())
        # Of a validation set without spread there is nothing to explain.
        squared = float(np.mean(errors[:, index] ** 2))
        values[f"val/r2_{target.name}"] = 1.0 - squared / spread if spread > 0 else 0.0
    return values


def _parity_plots(
    found: np.ndarray, known: np.ndarray, sizes: PredictorSizes
) -> dict[str, np.ndarray]:
    return {
        f"val/parity_{target.name}": parity_plot(known[:, i], found[:, i], name=target.name)
        for i, target in enumerate(sizes.targets)
    }
