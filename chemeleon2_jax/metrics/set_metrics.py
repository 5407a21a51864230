"""Metrics of the whole set: how far its distributions are from those of a reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from chemeleon2_jax.crystals.arrays import CrystalArrays, Crystals
from chemeleon2_jax.crystals.geometry import mass_density
from chemeleon2_jax.metrics.crystal_metrics import density
from chemeleon2_jax.metrics.distribution import frechet_distance, squared_mmd
from chemeleon2_jax.metrics.metric import FeatureModel, SetScore, Subject

_Features = tuple[np.ndarray, np.ndarray]  # (G, d) of the crystals, (N, d) of the reference


def wasserstein_density(subject: Subject) -> SetScore:
    """Wasserstein distance of densities from the reference.

    Of all crystals that have a density (Xie et al., ICLR 2022, take the valid ones: wdist_density).
    """
    densities = subject.once(density).numbers()
    return _wasserstein(densities[np.isfinite(densities)], _reference_densities(subject))


def wasserstein_num_elements(subject: Subject) -> SetScore:
    """Wasserstein distance of numbers of elements from the reference.

    Of all crystals (Xie et al., ICLR 2022, take the valid ones: wdist_num_elems).
    """
    generated = [len(np.unique(crystal[0])) for crystal in subject.crystals if crystal is not None]
    known = [len(np.unique(types)) for types in _atom_types(_reference(subject))]
    return _wasserstein(generated, known)


def structure_frechet(subject: Subject) -> SetScore:
    """Frechet distance of structures from the reference.

    Of the mean posterior over the atoms, as a VAE sees them; see
    :func:`~chemeleon2_jax.metrics.distribution.frechet_distance`.
    """
    return _compare(subject.once(_structure_features), frechet_distance)


def composition_frechet(subject: Subject) -> SetScore:
    """Frechet distance of compositions from the reference.

    Of the mean type embedding over the atoms, of a VAE's encoder; see
    :func:`~chemeleon2_jax.metrics.distribution.frechet_distance`.
    """
    return _compare(subject.once(_composition_features), frechet_distance)


def structure_diversity(subject: Subject) -> SetScore:
    """1 / (1 + Frechet distance of structures), 1 for the reference itself.

    Chemeleon2's definition; see :func:`structure_frechet`.
    """
    return _to_similarity(subject.once(structure_frechet))


def composition_diversity(subject: Subject) -> SetScore:
    """1 / (1 + Frechet distance of compositions), 1 for the reference itself.

    Chemeleon2's definition; see :func:`composition_frechet`.
    """
    return _to_similarity(subject.once(composition_frechet))


def structure_mmd(subject: Subject) -> SetScore:
    """Squared maximum mean discrepancy of structures from the reference.

    Of the mean posterior over the atoms, as a VAE sees them; see
    :func:`~chemeleon2_jax.metrics.distribution.squared_mmd`.
    """
    return _compare(subject.once(_structure_features), squared_mmd)


def composition_mmd(subject: Subject) -> SetScore:
    """Squared maximum mean discrepancy of compositions from the reference.

    Of the mean type embedding over the atoms, of a VAE's encoder; see
    :func:`~chemeleon2_jax.metrics.distribution.squared_mmd`.
    """
    return _compare(subject.once(_composition_features), squared_mmd)


def _reference(subject: Subject) -> Crystals:
    assert subject.reference is not None  # `choose_metrics` saw to it
    return subject.reference.crystals


def _atom_types(crystals: Crystals) -> list[np.ndarray]:
    return np.split(crystals.atom_types, crystals.offsets[1:-1])


def _reference_densities(subject: Subject) -> list[float]:
    """Mass densities in g/cm3 of the reference, without flat cells."""
    crystals = _reference(subject)
    volumes = np.abs(np.linalg.det(crystals.lattices.astype(np.float64))) / crystals.num_atoms
    pairs = zip(_atom_types(crystals), volumes.tolist(), strict=True)
    return [mass_density(types, volume) for types, volume in pairs if volume > 0.0]


def _wasserstein(generated: ArrayLike, known: ArrayLike) -> SetScore:
    from scipy.stats import wasserstein_distance  # half a second

    return SetScore(float(wasserstein_distance(generated, known)), len(np.asarray(generated)))


def _structure_features(subject: Subject) -> _Features:
    return _features(subject, _feature_model(subject).structure_features)


def _composition_features(subject: Subject) -> _Features:
    return _features(subject, _feature_model(subject).composition_features)


def _feature_model(subject: Subject) -> FeatureModel:
    assert subject.feature_model is not None  # `choose_metrics` saw to it
    return subject.feature_model


def _features(
    subject: Subject, features_fn: Callable[[Sequence[CrystalArrays | None]], np.ndarray]
) -> _Features:
    """Features of the crystals that have some, and of the reference."""
    reference = _reference(subject)
    samples = features_fn(subject.crystals)
    known = features_fn([reference.crystal(row) for row in range(len(reference))])
    return samples[np.isfinite(samples).all(1)], known


def _compare(features: _Features, distance: Callable[[np.ndarray, np.ndarray], float]) -> SetScore:
    return SetScore(distance(*features), len(features[0]))


def _to_similarity(distance: SetScore) -> SetScore:
    return SetScore(1.0 / (1.0 + distance.value), distance.count)
