"""Vectors of whole crystals."""

import numpy as np
import pytest

import chemeleon2_jax as c2
from chemeleon2_jax.crystals.structures import arrays_from_structure
from chemeleon2_jax.inference.features import (
    average_embeddings,
    average_latents,
    map_crystals,
)
from chemeleon2_jax.metrics.distribution import frechet_distance
from tests.tiny import make_crystals, perovskite, rocksalt


def test_average_embeddings():
    embedding = np.stack([np.arange(100.0), np.arange(100.0) ** 2], axis=1)
    salt = (np.array([11, 17]), np.array([[0, 0, 0], [0.5, 0.5, 0.5]]), 4.0 * np.eye(3))
    triple = (np.array([1, 1, 4]), np.zeros((3, 3)), np.eye(3))
    masked = (np.array([0, 5]), np.zeros((2, 3)), np.eye(3))
    features = average_embeddings([salt, None, triple, masked], embedding)
    nothing = [np.nan, np.nan]
    expected = [[14.0, (121 + 289) / 2], nothing, [2.0, (1 + 1 + 16) / 3], nothing]
    np.testing.assert_allclose(features, expected)
    assert average_embeddings([], embedding).shape == (0, 2)


def test_average_latents():
    means = [np.array([[1.0, 2.0], [3.0, 4.0]], np.float32), None, np.zeros((0, 2))]
    expected = [[2.0, 3.0], [np.nan, np.nan], [np.nan, np.nan]]
    np.testing.assert_array_equal(average_latents(means, 2), expected)


def test_crystals_that_are_not_there_keep_their_place():
    beyond = (np.array([5]), np.array([[1.25, -0.25, 0.5]]), np.eye(3))
    seen = []

    def count(crystals):
        seen.append(crystals.frac_coords)
        return crystals.num_atoms.tolist()

    assert map_crystals(count, [None, beyond, None]) == [None, 1, None]
    np.testing.assert_allclose(seen[0], [[0.25, 0.75, 0.5]])
    assert map_crystals(count, [None]) == [None]
    assert len(seen) == 1


@pytest.mark.usefixtures("quick_compilation")
def test_a_vae_compares_sets_of_crystals(tiny_vae):
    vae = c2.load_model(tiny_vae.path)
    structures = [rocksalt("Na", "Cl", 5.64), perovskite("Sr", "Ti", 3.9), rocksalt("K", "F", 5.3)]
    arrays = [*map(arrays_from_structure, structures), None]
    features = vae.structure_features(arrays)
    means, _ = vae.encode(structures)
    np.testing.assert_allclose(features[:3], [mean.mean(0) for mean in means], rtol=1e-5)
    assert np.isnan(features[3]).all()
    table = vae.parts.params["encoder"]["atom_types"][...]
    composition = vae.composition_features(arrays)
    np.testing.assert_allclose(composition[0], (table[11] + table[17]) / 2, rtol=1e-5)

    reference = make_crystals()
    report = c2.evaluate(
        structures, reference, ["structure_frechet"], feature_model=vae, num_workers=0
    )
    known = np.stack([mean.mean(0) for mean in vae.encode(reference)[0]])
    expected = frechet_distance(features[:3], known)
    distance = report.summary["set"]["structure_frechet"]
    assert distance["value"] == pytest.approx(expected, rel=1e-4)
    assert distance["count"] == 3
