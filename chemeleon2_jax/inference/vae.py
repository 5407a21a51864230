"""Trained VAEs and predictors as Python objects: encode, decode, predict."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from flax import nnx
from pymatgen.core import Structure

from chemeleon2_jax.crystals.arrays import MAX_ATOMIC_NUMBER, CrystalArrays, Crystals
from chemeleon2_jax.crystals.limits import check_num_atoms
from chemeleon2_jax.crystals.structures import structure_from_arrays, structures_to_crystals
from chemeleon2_jax.data.loader import in_order
from chemeleon2_jax.inference.features import average_embeddings, average_latents, map_crystals
from chemeleon2_jax.inference.generator import LARGEST_LATENT
from chemeleon2_jax.models.abstract import count_parameters
from chemeleon2_jax.models.meta import ModelMeta
from chemeleon2_jax.models.predictor import to_units
from chemeleon2_jax.models.vae import Reconstruction, reconstruct, split_crystals
from chemeleon2_jax.pretrained.loading import PredictorParts, VAEParts
from chemeleon2_jax.rows.layout import Layout
from chemeleon2_jax.rows.packing import Assignment
from chemeleon2_jax.rows.rows import Rows

_BATCH_SIZE = 256
# Pairs of tokens in a row, and of atoms of a graph, that a batch may hold: 256 crystals of 256, and
# of 64 atoms. Large crystals come in smaller batches.
_MAX_TOKEN_PAIRS = 1 << 24
_MAX_EDGES = 1 << 20


@dataclass(repr=False)
class VAEModel:
    """A trained VAE.

    Attributes:
        parts: sizes and parameters.
        meta: of its checkpoint; None for a VAE without one.
    """

    parts: VAEParts
    meta: ModelMeta | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        kind = "atom types decoded" if self.parts.sizes.atom_type_predict else "atom types given"
        return (
            f"VAEModel({count_parameters(self.parts.params) / 1e6:.3g} million parameters, "
            f"latents of {self.parts.sizes.latent_dim}, {kind})"
        )

    def encode(
        self, structures: Sequence[Structure], *, standardize: bool = False
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return means and logvars of the latents, (n_atoms, L) each, one a structure.

        Latents depend on the choice and the orientation of the cell.

        Args:
            structures: atoms in the order of the latents.
            standardize: whether to encode their Niggli cells in standard orientation, as training
                data is, in place of the cells as they are.

        Raises:
            ValueError: a disordered structure, one with an element beyond Z = 99, or a cell that
                cannot be reduced.
        """
        return self.encode_crystals(structures_to_crystals(structures, standardize=standardize))

    def encode_crystals(self, crystals: Crystals) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return means and logvars as `encode` does, for crystals as arrays."""
        means: list[np.ndarray] = []
        logvars: list[np.ndarray] = []
        for rows, where in batches(crystals, edges=self.parts.sizes.encoder.needs_edges):
            mean, logvar = self._encode(self.parts.params, rows)
            means += where.split_atoms(mean)
            logvars += where.split_atoms(logvar)
        return means, logvars

    def structure_features(self, crystals: Sequence[CrystalArrays | None]) -> np.ndarray:
        """Return the means of the latents averaged over each crystal's atoms, (G, L); NaN for None.

        Chemeleon2 compares sets of crystals by these, and by `composition_features`.
        """
        means = map_crystals(lambda present: self.encode_crystals(present)[0], crystals)
        return average_latents(means, self.parts.sizes.latent_dim)

    def composition_features(self, crystals: Sequence[CrystalArrays | None]) -> np.ndarray:
        """Return the elements' embeddings averaged over a crystal's atoms, (G, d); NaN for None."""
        encoder = self.parts.module(self.parts.params).encoder
        return average_embeddings(crystals, np.asarray(encoder.atom_types[...]))

    def decode(
        self, latents: Sequence[np.ndarray], *, atom_types: Sequence[np.ndarray] | None = None
    ) -> list[Structure | None]:
        """Return one Structure a latent (n_atoms, L); None, with a warning that gives the reason,
        where the latent is not finite or the cell cannot be built.

        Args:
            latents: as `encode` returns them.
            atom_types: atomic numbers (n_atoms,) each, only for a VAE that does not predict them.

        Raises:
            ValueError: atom types missing or superfluous, or wrong shapes.
        """
        crystals = self.decode_crystals(latents, atom_types=atom_types)
        return [_build(arrays, index) for index, arrays in enumerate(crystals)]

    def decode_crystals(
        self, latents: Sequence[np.ndarray], *, atom_types: Sequence[np.ndarray] | None = None
    ) -> list[CrystalArrays | None]:
        """Return the arrays of crystals as `decode` does, whether or not a cell can be built; None
        where the latent is not finite.
        """
        crystals = self._crystals_of(latents, atom_types)
        if not len(latents):
            return []
        usable = [bool((np.abs(z) < LARGEST_LATENT).all()) for z in latents]
        # Zeros in place of non-finite latents, which would reach the other crystals of their row.
        finite = [z if ok else np.zeros_like(z) for z, ok in zip(latents, usable, strict=True)]
        flat = np.concatenate(finite).astype(np.float32)
        arrays: list[Any] = []
        for rows, where in batches(crystals, features={"latent": flat}):
            arrays += split_crystals(self._decode(self.parts.params, rows), where)
        return [a if ok else None for a, ok in zip(arrays, usable, strict=True)]

    def decode_onto(
        self, latents: Sequence[np.ndarray], crystals: Crystals
    ) -> list[CrystalArrays | None]:
        """Return `decode_crystals` of latents of known crystals: of their atom types, if the VAE
        does not predict them.
        """
        if self.parts.sizes.atom_type_predict:
            return self.decode_crystals(latents)
        types = [crystals.crystal(index)[0] for index in range(len(crystals))]
        return self.decode_crystals(latents, atom_types=types)

    def _crystals_of(
        self, latents: Sequence[np.ndarray], atom_types: Sequence[np.ndarray] | None
    ) -> Crystals:
        predicts, width = self.parts.sizes.atom_type_predict, self.parts.sizes.latent_dim
        if predicts == (atom_types is not None):
            raise ValueError(
                "this VAE predicts atom types: do not give them"
                if predicts
                else "this VAE does not predict atom types: give atom_types=[...]"
            )
        check_latents(latents, width)
        if atom_types is not None:
            _check_types(atom_types, latents)
        return Crystals.from_list(
            (
                np.ones(len(z)) if atom_types is None else atom_types[i],
                np.zeros((len(z), 3)),
                np.eye(3),
            )
            for i, z in enumerate(latents)
        )

    @property
    def _encode(self) -> Callable[[Any, Rows], Any]:
        return _jitted_encode(self.parts.graphdef)

    @property
    def _decode(self) -> Callable[[Any, Rows], Reconstruction]:
        return _jitted_decode(self.parts.graphdef)


@dataclass(repr=False)
class PredictorModel:
    """A trained predictor of properties.

    Attributes:
        parts: sizes and parameters, with those of its VAE, whose encoder it reads.
        meta: of its checkpoint.
    """

    parts: PredictorParts
    meta: ModelMeta = field(repr=False)

    def __repr__(self) -> str:
        names = ", ".join(target.name for target in self.parts.sizes.targets)
        return (
            f"PredictorModel({count_parameters(self.parts.params) / 1e6:.3g} million parameters, "
            f"targets: {names}, {self.vae!r})"
        )

    @property
    def vae(self) -> VAEModel:
        """Its VAE."""
        return VAEModel(self.parts.vae, self.meta)

    def predict(
        self, structures: Sequence[Structure], *, standardize: bool = False
    ) -> dict[str, np.ndarray]:
        """Return {target: (n,) float64 in its unit}.

        Args:
            structures: to predict.
            standardize: whether to take their Niggli cells in standard orientation, as training
                data is, in place of the cells as they are; predictions are best for those.

        Raises:
            ValueError: a disordered structure, one with an element beyond Z = 99, or a cell that
                cannot be reduced.
        """
        return self.predict_crystals(structures_to_crystals(structures, standardize=standardize))

    def predict_crystals(self, crystals: Crystals) -> dict[str, np.ndarray]:
        """Return {target: (G,) float64 in its unit} for crystals as arrays."""
        sizes, vae = self.parts.sizes, self.parts.vae
        batch_values = [np.zeros((0, len(sizes.targets)))]
        fn = _jitted_predict(vae.graphdef, self.parts.graphdef)
        for rows, where in batches(crystals, edges=vae.sizes.encoder.needs_edges):
            batch_values.append(where.take_slots(fn(vae.params, self.parts.params, rows)))
        values = to_units(np.concatenate(batch_values).astype(np.float64), sizes)
        return {target.name: values[:, i] for i, target in enumerate(sizes.targets)}


def batches(
    crystals: Crystals,
    *,
    edges: bool = False,
    features: Mapping[str, np.ndarray] | None = None,
    conditions: Mapping[str, np.ndarray] | None = None,
) -> Iterator[tuple[Rows, Assignment]]:
    """Yield (rows, assignment) for all crystals in order, all of one shape.

    Args:
        crystals: any number G, with A atoms in all.
        edges: whether to add the pairs of atoms, for an encoder that needs them.
        features: name -> (A, width).
        conditions: name -> (G, width).

    Raises:
        ValueError: a crystal is too large for an encoder that needs edges.
    """
    if not len(crystals):
        return
    sizes = crystals.num_atoms
    batch_size = _batch_size(int(sizes.max()), edges=edges)
    like = Layout.plan(sizes, batch_size, edges=edges)
    batch_sizes = [sizes[i : i + batch_size] for i in range(0, len(sizes), batch_size)]
    layout = Layout.for_batches(batch_sizes, like=like, coarse=True)
    filled = in_order(
        crystals,
        layout,
        batch_size,
        atom_features=features,
        conditions=conditions,
        whole=True,
    )
    for rows, where, _ in filled:
        yield rows, where


def _batch_size(largest: int, *, edges: bool) -> int:
    """Return the number of crystals in a batch whose largest has that many atoms.

    Raises:
        ValueError: the pairs of its atoms alone are too many.
    """
    pairs = largest**2
    if edges and pairs > _MAX_EDGES:
        raise ValueError(
            f"{largest} atoms in a crystal are too many for the encoder of this model, which needs "
            f"all their pairs: the limit is {math.isqrt(_MAX_EDGES)} atoms"
        )
    return max(1, min(_BATCH_SIZE, (_MAX_EDGES if edges else _MAX_TOKEN_PAIRS) // pairs))


def check_latents(latents: Sequence[np.ndarray], width: int) -> None:
    """Raise ValueError for a latent whose shape is not (n_atoms, width), or with too many atoms."""
    for index, z in enumerate(latents):
        if np.ndim(z) != 2 or np.shape(z)[1] != width or not len(z):
            raise ValueError(f"latent {index} has shape {np.shape(z)}, not (n_atoms, {width})")
        try:
            check_num_atoms(len(z))
        except ValueError as error:
            raise ValueError(f"latent {index}: {error}") from error


def _check_types(atom_types: Sequence[np.ndarray], latents: Sequence[np.ndarray]) -> None:
    if len(atom_types) != len(latents):
        raise ValueError(f"{len(latents)} latents, but {len(atom_types)} atom_types")
    for index, (types, z) in enumerate(zip(atom_types, latents, strict=True)):
        if np.shape(types) != (len(z),):
            raise ValueError(
                f"latent {index} has {len(z)} atoms, but its atom_types have the shape "
                f"{np.shape(types)}"
            )
        if not np.isin(types, np.arange(1, MAX_ATOMIC_NUMBER + 1)).all():
            raise ValueError(
                f"atom_types of latent {index} are not atomic numbers 1 to {MAX_ATOMIC_NUMBER}"
            )


def _build(arrays: Any, index: int) -> Structure | None:
    """Build a Structure from (atom_types, frac_coords, lattice); where that fails, warn and return
    None.
    """
    try:
        if arrays is None:
            raise ValueError("the latent is not finite")
        return structure_from_arrays(*arrays)
    except ValueError as error:
        warnings.warn(f"latent {index} decodes to no crystal: {error}", stacklevel=3)
        return None


@lru_cache(maxsize=8)
def _jitted_encode(graphdef: Any) -> Any:
    def encode(params: Any, rows: Rows) -> tuple[jax.Array, jax.Array]:
        posterior = nnx.merge(graphdef, params).encode(rows)
        return posterior.mean, posterior.logvar

    return jax.jit(encode)


@lru_cache(maxsize=8)
def _jitted_decode(graphdef: Any) -> Any:
    def decode(params: Any, rows: Rows) -> Reconstruction:
        return reconstruct(nnx.merge(graphdef, params).decode(rows.features["latent"], rows), rows)

    return jax.jit(decode)


@lru_cache(maxsize=8)
def _jitted_predict(vae_graphdef: Any, graphdef: Any) -> Any:
    def predict(vae_params: Any, params: Any, rows: Rows) -> jax.Array:
        posterior = nnx.merge(vae_graphdef, vae_params).encode(rows)
        return nnx.merge(graphdef, params)(posterior, rows)

    return jax.jit(predict)
