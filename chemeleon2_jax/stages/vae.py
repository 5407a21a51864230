"""The VAE stage: crystals to latents and back."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from chemeleon2_jax.common import hosts
from chemeleon2_jax.common.errors import ConfigError, DatasetError
from chemeleon2_jax.common.randomness import named_key
from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.data.augment import Noise, augment, corrupt
from chemeleon2_jax.metrics.matching import Tolerances
from chemeleon2_jax.metrics.reconstruction import STRICT_AND_LOOSE, match_rates
from chemeleon2_jax.models.encoders.registry import read_encoder
from chemeleon2_jax.models.losses import (
    CoordsLoss,
    Terms,
    foundation_alignment,
    total_loss,
    vae_terms,
    weighted_means,
)
from chemeleon2_jax.models.meta import ModelMeta
from chemeleon2_jax.models.sizes import DecoderSizes, VAESizes
from chemeleon2_jax.models.vae import (
    FOUNDATION_WIDTH,
    VAE,
    Reconstruction,
    blur_latents,
    reconstruct,
    sample_posterior,
    split_crystals,
)
from chemeleon2_jax.rows.rows import Rows, atom_normal
from chemeleon2_jax.stages.common import (
    VALIDATION_SEED,
    augmentation,
    evaluator,
    make_pool,
    make_stage,
    new_module,
    resumed_from,
    sum_terms,
)
from chemeleon2_jax.stages.data import StageData, load_data
from chemeleon2_jax.stages.vae_objective import VAEObjective, with_steps
from chemeleon2_jax.stages.vae_start import start_weights
from chemeleon2_jax.stages.vae_tolerance import TOLERANCE_VALUES, make_tolerance
from chemeleon2_jax.training.stage import Stage, ValidateFn, Validation

FOUNDATION = "foundation"

NOT_A_CRYSTAL = 2**32 - 1
"""Names the key of a second noise: no crystal has this id, so that no noise is drawn twice."""


def vae_sizes(module: ConfigDict) -> VAESizes:
    """Read the model's sizes off `vae_module`.

    Raises:
        ConfigError: an unknown encoder.
    """
    try:
        encoder = read_encoder(module.encoder)
    except ValueError as error:
        raise ConfigError(f"vae_module: {error}") from error
    return VAESizes(
        latent_dim=module.latent_dim,
        encoder=encoder,
        decoder=DecoderSizes(**module.decoder.to_dict()),
        atom_type_predict=module.atom_type_predict,
        foundation_alignment=module.loss_weights.fa > 0,
    )


def build_vae(config: ConfigDict, *, resume_dir: Path | None = None) -> Stage:
    """Build the stage; see `stages.build`. It needs no model, also when resumed."""
    module, sizes = config.vae_module, vae_sizes(config.vae_module)
    data = load_data(config, edges=sizes.encoder.needs_edges)
    if sizes.foundation_alignment:
        data = _with_foundation_features(data, module.foundation_features)
    graphdef, params = new_module(VAE, sizes, config)
    if module.vae_ckpt_path and resumed_from(resume_dir) is None:
        params = start_weights(params, sizes, module.vae_ckpt_path)
    objective = VAEObjective.from_config(module)
    noise = Noise(module.noise.ratio, module.noise.corruption_scale)
    options = augmentation(module.augmentation)

    def loss_fn(params: Any, _: Any, key: jax.Array, rows: Rows, *, objective: VAEObjective) -> Any:
        augment_key, corrupt_key, sample_key = jax.random.split(key, 3)
        clean = augment(augment_key, rows, options)
        noisy = corrupt(corrupt_key, clean, noise)
        terms = autoencoder_terms(
            nnx.merge(graphdef, params),
            clean,
            noisy,
            key=sample_key,
            coords=objective.coords,
            latent_noise=objective.latent_noise,
        )
        total, means = total_loss(terms, objective.weights)
        return total, {**means, **weighted_means(means, objective.weights)}

    training_loss, batches = with_steps(loss_fn, data.loader(config.seed), objective)
    meta = ModelMeta(
        stage="train_vae",
        vae=sizes,
        size_table=data.size_table,
        config=config.to_dict(),
        data=data.digest,
    )
    return make_stage(
        config,
        meta,
        params=params,
        loss_fn=training_loss,
        batches=batches,
        validate=_make_validate(config, data, sizes=sizes, graphdef=graphdef, objective=objective),
        value_names=value_names(module),
        # Terms as they enter the loss, not before their weights.
        shown={
            "atom_type_accuracy": "type accuracy",
            "weighted_kl": "KL",
            "weighted_frac_coords": "coords",
            "val/match_rate": "match",
            "val/atom_type_accuracy": "type accuracy",
        },
    )


def autoencoder_terms(
    vae: VAE,
    clean: Rows,
    noisy: Rows,
    *,
    key: jax.Array,
    coords: CoordsLoss | None = None,
    latent_noise: float = 0.0,
) -> Terms:
    """Return the loss terms of a reconstruction.

    Args:
        vae: the model.
        clean: the target.
        noisy: the encoder's input.
        key: of the posterior's sample, and of the noise on it.
        coords: comparison of coordinates; None for that of the original.
        latent_noise: level of the noise on the decoder's input, see `blur_latents`.
    """
    posterior = vae.encode(noisy)
    width = posterior.mean.shape[-1]
    z = sample_posterior(posterior, atom_normal(key, clean, width))
    if latent_noise:
        blur_key = jax.random.fold_in(key, NOT_A_CRYSTAL)
        z = blur_latents(z, atom_normal(blur_key, clean, width), clean, level=latent_noise)
    decoded = vae.decode(z, clean)
    terms = dict(vae_terms(decoded, posterior, clean, coords=coords or CoordsLoss()))
    if vae.projection is not None:
        features = clean.features[FOUNDATION]
        terms["loss_fa"] = foundation_alignment(vae.project(z), features, clean.is_atom)
    return terms


def value_names(module: ConfigDict) -> tuple[str, ...]:
    """Return the names of the validation values of `_make_validate`."""
    names = ["total_loss", *(f"loss_{n}" for n in ("lengths", "angles", "frac_coords", "kl"))]
    if module.atom_type_predict:
        names += ["loss_atom_types", "atom_type_accuracy"]
    if module.loss_weights.fa > 0:
        names.append("loss_fa")
    if module.match_rate.num_samples:
        names += [f"{rate}{suffix}" for rate in STRICT_AND_LOOSE for suffix in ("", "_rms")]
        names.append("match_timeouts")
    if module.tolerance.num_samples:
        names += TOLERANCE_VALUES
    return tuple(f"val/{name}" for name in names)


def _make_validate(
    config: ConfigDict,
    data: StageData,
    *,
    sizes: VAESizes,
    graphdef: Any,
    objective: VAEObjective,
) -> ValidateFn:
    """Losses on the whole validation set, without noise and augmentation; of samples of it the
    match rates, and the tolerance of the decoder.
    """
    options = config.vae_module.match_rate
    count = min(options.num_samples, len(data.val))
    matched = set(np.linspace(0, len(data.val) - 1, count).astype(int).tolist()) if count else set()
    loose = config.vae_module.structure_matcher
    tolerances = {
        **STRICT_AND_LOOSE,
        "match_rate_loose": Tolerances(loose.ltol, loose.stol, loose.angle_tol),
    }
    pool = make_pool(config)
    measure_tolerance = make_tolerance(config, data.val, sizes=sizes, graphdef=graphdef, pool=pool)
    key = named_key(VALIDATION_SEED, "validation")

    def evaluate(params: Any, rows: Rows) -> tuple[Terms, Reconstruction]:
        vae = nnx.merge(graphdef, params)
        terms = autoencoder_terms(vae, rows, rows, key=key, coords=objective.coords)
        return terms, reconstruct(vae.decode(vae.encode(rows).mean, rows), rows)

    jitted = evaluator(evaluate, data.mesh)

    def validate(params: Any, _: Mapping[str, Any]) -> Validation:
        terms, pairs = [], []
        for rows, assignment, indices in data.val_batches():
            batch_terms, crystals = jitted(params, rows)
            terms.append(batch_terms)
            chosen = [place for place, index in enumerate(indices.tolist()) if index in matched]
            if chosen:
                built = split_crystals(crystals, assignment)
                pairs += [(built[i], data.val.crystal(int(indices[i]))) for i in chosen]
        total, means = total_loss(sum_terms(terms), objective.weights)
        values = {"total_loss": float(total), **{n: float(mean) for n, mean in means.items()}}
        if pairs:
            results = hosts.from_first(
                lambda: match_rates(pairs, pool, tolerances=tolerances, timeout_s=options.timeout_s)
            )
            for name, result in results.items():
                values |= {name: result.rate, f"{name}_rms": result.rate_by_rms}
            values["match_timeouts"] = float(results["match_rate"].num_timeouts)
        tolerance, pictures = hosts.from_first(lambda: measure_tolerance(params))
        named = {f"val/{name}": value for name, value in {**values, **tolerance}.items()}
        return Validation(named, pictures)

    return validate


def _with_foundation_features(data: StageData, path: str) -> StageData:
    """Add the features of a .npz file with an array (atoms, 256) for each material id."""
    if not path:
        raise ConfigError(
            "vae_module.loss_weights.fa > 0 needs vae_module.foundation_features, a .npz file with "
            f"an array (atoms, {FOUNDATION_WIDTH}) for each material id"
        )
    if not Path(path).is_file():
        raise DatasetError(f"vae_module.foundation_features: there is no file {path!r}")
    try:
        with np.load(path) as features:
            return replace(
                data,
                train_features={FOUNDATION: _features(data.train, features, path)},
                val_features={FOUNDATION: _features(data.val, features, path)},
            )
    except DatasetError:
        raise
    # What numpy raises on a file that is damaged, or is none of its archives.
    except (OSError, EOFError, TypeError, ValueError, BadZipFile, zlib.error) as error:
        raise DatasetError(f"{path} cannot be read as a .npz file: {error}") from error


def _features(crystals: Crystals, features: Any, path: str) -> np.ndarray:
    """Features of all atoms, (A, FOUNDATION_WIDTH) float32."""
    arrays = []
    for material_id, num_atoms in zip(crystals.material_ids, crystals.num_atoms, strict=True):
        name = material_id.decode()
        if name not in features:
            raise DatasetError(f"{path} has no features for the crystal {name!r}")
        array = features[name]  # read from the file at every access
        if array.shape != (num_atoms, FOUNDATION_WIDTH):
            raise DatasetError(
                f"{path}: the features of {name!r} have the shape {array.shape}, not "
                f"({num_atoms}, {FOUNDATION_WIDTH}); they must follow the atoms of the reduced cell"
            )
        arrays.append(array)
    return np.concatenate(arrays).astype(np.float32)
