"""The predictor stage: properties of crystals from the latents of a frozen VAE.

The features that the VAE gives for a crystal never change in training. They are computed once, and
a step trains a small network on vectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from chemeleon2_jax.common import hosts
from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.crystals.visualize import parity_plot
from chemeleon2_jax.data.loader import Loader
from chemeleon2_jax.models.meta import ModelMeta
from chemeleon2_jax.models.predictor import Predictor, pool_features, standardise, to_units
from chemeleon2_jax.models.sizes import PredictorSizes, Target, VAESizes
from chemeleon2_jax.pretrained.loading import VAEParts, vae_of
from chemeleon2_jax.rows.batch import Batch
from chemeleon2_jax.rows.packing import Assignment
from chemeleon2_jax.rows.rows import Rows
from chemeleon2_jax.runs.config import split_names
from chemeleon2_jax.stages.common import (
    compute_dtype,
    evaluator,
    items_with,
    make_stage,
    new_module,
    open_start,
    resumed_from,
)
from chemeleon2_jax.stages.data import StageData, load_data
from chemeleon2_jax.stages.statistics import read_statistics
from chemeleon2_jax.training.parallel import replicate
from chemeleon2_jax.training.stage import LossFn, Stage, ValidateFn, Validation


@dataclass(frozen=True)
class PooledBatches:
    """Training batches of feature vectors, in the order of a loader's crystals.

    Attributes:
        loader: of the crystals.
        features: (G, W) float32, pooled features of the crystals.
        targets: (G, P) float32, standardised.
        num_devices: number of devices that the first axis is sharded over.
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
        """Return the batch of a step (0-based), with the crystals of this process."""
        indices = self.loader.indices(step)
        return Batch(self._local(indices), len(indices))

    def _local(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Arrays of this process, padded with weight 0 to a multiple of the devices."""
        padded = np.concatenate([indices, np.repeat(indices[:1], -len(indices) % self.num_devices)])
        weights = (np.arange(len(padded)) < len(indices)).astype(np.float32)
        share = slice(*hosts.share(len(padded)))
        crystals = padded[share]
        return {
            "features": self.features[crystals],
            "targets": self.targets[crystals],
            "crystal_id": crystals.astype(np.int32),
            "weights": weights[share],
        }


def build_predictor(config: ConfigDict, *, resume_dir: Path | None = None) -> Stage:
    """Build the stage; see `stages.build`."""
    module, names = config.predictor_module, _target_names(config)
    model = resumed_from(resume_dir) or open_start(
        module.vae_ckpt_path, key="predictor_module.vae_ckpt_path", stage="train_vae"
    )
    vae = vae_of(model, dtype=compute_dtype(config))
    data = load_data(config, edges=vae.sizes.encoder.needs_edges)
    sizes = _predictor_sizes(module, names, vae=vae.sizes, train=data.train)
    graphdef, params = new_module(Predictor, sizes, config)
    vae = replace(vae, params=replicate(vae.params, data.mesh))
    meta = ModelMeta(
        stage="train_predictor",
        vae=vae.sizes,
        predictor=sizes,
        size_table=data.size_table,
        config=config.to_dict(),
        vae_config=model.meta.config_of_vae,
        data=data.digest,
    )
    batches = PooledBatches(
        data.loader(config.seed),
        features=pool(data.train_batches(), vae, sizes, mesh=data.mesh),
        targets=standardise(_in_units(data.train, sizes), sizes).astype(np.float32),
        num_devices=data.mesh.devices.size,
    )
    return make_stage(
        config,
        meta,
        params=params,
        loss_fn=_make_loss(graphdef, sizes),
        batches=batches,
        validate=_make_validate(data, vae, sizes, graphdef=graphdef),
        value_names=value_names(sizes),
        items=items_with(vae=vae.params),
        shown={
            "grad_norm": "gradient",
            **{f"val/mae_{target.name}": f"MAE {target.name}" for target in sizes.targets},
        },
    )


def _target_names(config: ConfigDict) -> tuple[str, ...]:
    names = split_names(config.data.target_condition)
    if not names:
        raise ConfigError(
            "data.target_condition is empty: name the columns to predict, as in "
            "--config.data.target_condition=formation_energy_per_atom"
        )
    return names


def _predictor_sizes(
    module: ConfigDict, names: tuple[str, ...], *, vae: VAESizes, train: Crystals
) -> PredictorSizes:
    """Read the sizes off `predictor_module`; statistics that it does not state are the training
    set's.
    """
    key = "predictor_module.target_conditions"
    moments = read_statistics(module.target_conditions, names, train, key=key)
    try:
        return PredictorSizes(
            latent_dim=vae.latent_dim,
            encoder_dim=vae.encoder.d_model,
            targets=tuple(Target(name, *moments[name]) for name in names),
            reduce=module.reduce,
            use_encoder_features=module.use_encoder_features,
        )
    except ValueError as error:
        raise ConfigError(f"predictor_module: {error}") from error


def _make_loss(graphdef: Any, sizes: PredictorSizes) -> LossFn:
    def loss_fn(params: Any, frozen: Any, key: jax.Array, batch: Any) -> Any:
        del frozen
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch["crystal_id"])
        predicted = nnx.merge(graphdef, params).head(batch["features"], dropout_keys=keys)
        errors = (predicted - batch["targets"]) ** 2 * batch["weights"][:, None]
        means = errors.sum(0) / batch["weights"].sum()
        terms = {f"loss_{t.name}": means[i] for i, t in enumerate(sizes.targets)}
        return means.mean(), terms

    return loss_fn


def pool(
    batches: Iterable[tuple[Rows, Assignment, Any]],
    vae: VAEParts,
    sizes: PredictorSizes,
    *,
    mesh: Mesh,
) -> np.ndarray:
    """Return the pooled features of each crystal of some batches, in order: (G, W) float32."""
    jitted = evaluator(
        lambda params, rows: pool_features(vae.module(params).encode(rows), rows, sizes), mesh
    )
    return np.concatenate(
        [
            assignment.take_slots(jax.device_get(jitted(vae.params, rows)))
            for rows, assignment, _ in batches
        ]
    )


def _in_units(crystals: Crystals, sizes: PredictorSizes) -> np.ndarray:
    """Targets of all crystals, (G, P) float64."""
    return np.stack([crystals.targets[t.name].astype(np.float64) for t in sizes.targets], -1)


def _make_validate(
    data: StageData, vae: VAEParts, sizes: PredictorSizes, *, graphdef: Any
) -> ValidateFn:
    """Loss as in training, and the error of each target in its unit, with a parity plot."""
    features = replicate(pool(data.val_batches(), vae, sizes, mesh=data.mesh), data.mesh)
    known = _in_units(data.val, sizes)
    predict = evaluator(lambda params, x: nnx.merge(graphdef, params).head(x), data.mesh)

    def validate(params: Any, _: Mapping[str, Any]) -> Validation:
        standardised = np.asarray(predict(params, features), np.float64)
        loss = float(np.mean((standardised - standardise(known, sizes)) ** 2))
        predicted = to_units(standardised, sizes)
        values, pictures = {"val/total_loss": loss}, {}
        for i, name in enumerate(target.name for target in sizes.targets):
            values[f"val/mae_{name}"] = float(np.abs(predicted[:, i] - known[:, i]).mean())
            values[f"val/r2_{name}"] = _r2(predicted[:, i], known[:, i])
            pictures[f"val/parity_{name}"] = parity_plot(known[:, i], predicted[:, i], name=name)
        return Validation(values, pictures)

    return validate


def value_names(sizes: PredictorSizes) -> tuple[str, ...]:
    """Return the names of the validation values of `_make_validate`."""
    of_targets = (f"val/{kind}_{t.name}" for t in sizes.targets for kind in ("mae", "r2"))
    return ("val/total_loss", *of_targets)


def _r2(predicted: np.ndarray, known: np.ndarray) -> float:
    """Coefficient of determination; 0 where all known values are the same."""
    spread = float(np.var(known))
    squared = float(np.mean((predicted - known) ** 2))
    return 1.0 - squared / spread if spread > 0 else 0.0
