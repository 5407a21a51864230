"""Posteriors of a frozen VAE's encoder, computed once where the crystals stay as they are.

The encoder is the same at every step, and so is its output for a crystal that is not augmented.
Means and log variances of all atoms then come with the rows, as other features of atoms do.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from absl import logging

from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.data.loader import in_order
from chemeleon2_jax.models.vae import Posterior
from chemeleon2_jax.pretrained.loading import VAEParts
from chemeleon2_jax.rows.layout import Layout
from chemeleon2_jax.rows.rows import Rows
from chemeleon2_jax.stages.common import evaluator
from chemeleon2_jax.stages.data import StageData
from chemeleon2_jax.training.parallel import shard_batch

_MEAN, _LOGVAR = "posterior_mean", "posterior_logvar"


def posterior_of(vae: VAEParts, params: Any, rows: Rows) -> Posterior:
    """Return the posterior of the rows' crystals: the cached one where they have it, else that of
    the encoder with `params`. A cached one has no encoder features.
    """
    if _MEAN not in rows.features:
        return vae.module(params).encode(rows)
    mean, logvar = rows.features[_MEAN], rows.features[_LOGVAR]
    return Posterior(mean, logvar, features=mean[..., :0])


def as_features(mean: np.ndarray, logvar: np.ndarray) -> dict[str, np.ndarray]:
    """Return means and log variances (A, L) as the features of atoms that `posterior_of` reads."""
    return {_MEAN: mean, _LOGVAR: logvar}


def cache_posteriors(data: StageData, vae: VAEParts) -> StageData:
    """Return the data with the posteriors of all crystals, and rows without the edges that only the
    encoder needs.

    They take 8 L bytes an atom (L latent width) in the memory of every process.

    Args:
        data: training and validation crystals, not augmented.
        vae: with its parameters on the devices of the data.
    """
    start = time.perf_counter()
    splits = (data.train, data.val)
    sizes = [
        crystals.num_atoms[i : i + data.batch_size]
        for crystals in splits
        for i in range(0, len(crystals), data.batch_size)
    ]
    # One shape for all batches of both: one program.
    layout = Layout.for_batches(sizes, like=data.layout, num_devices=data.mesh.devices.size)

    def moments(params: Any, rows: Rows) -> tuple[jax.Array, jax.Array]:
        posterior = vae.module(params).encode(rows)
        return posterior.mean, posterior.logvar

    encode = evaluator(moments, data.mesh)

    def features(crystals: Crystals) -> dict[str, np.ndarray]:
        means: list[np.ndarray] = []
        logvars: list[np.ndarray] = []
        for rows, where, _ in in_order(crystals, layout, data.batch_size):
            mean, logvar = jax.device_get(encode(vae.params, shard_batch(rows, data.mesh)))
            means += where.split_atoms(mean)
            logvars += where.split_atoms(logvar)
        return as_features(np.concatenate(means), np.concatenate(logvars))

    train, val = map(features, splits)
    megabytes = sum(array.nbytes for split in (train, val) for array in split.values()) / 1e6
    logging.info(
        "encoded %d crystals once: their posteriors take %.3g MB (%.1f s)",
        *(sum(map(len, splits)), megabytes, time.perf_counter() - start),
    )
    return replace(
        data,
        layout=data.layout.without_edges(),
        val_layout=data.val_layout.without_edges(),
        train_features={**data.train_features, **train},
        val_features={**data.val_features, **val},
    )
