"""The creativity reward against values worked out by hand."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from chemeleon2_jax.metrics.uniqueness import References
from chemeleon2_jax.rewards.creativity import creativity


def cubic(element, length):
    """One atom in a cube."""
    return Structure(Lattice.cubic(length), [element], [[0, 0, 0]])


def bcc(element, length):
    return Structure(Lattice.cubic(length), [element] * 2, [[0, 0, 0], [0.5, 0.5, 0.5]])


def test_values():
    generated = [
        cubic("Po", 3.1),  # unique, not novel: 0.1 * 3 from the reference, see below
        cubic("Po", 3.12),  # neither
        bcc("Po", 3.0),  # both
        bcc("Po", 3.05),  # novel, not unique
        None,
        cubic("Fe", 3.0),  # both
        cubic("Na", 3.0),  # unique, a copy of a reference, and no other of its formula
    ]
    references = References([cubic("Po", 3.0), cubic("Na", 3.0)])
    scores = creativity(generated, references)
    # The 100th neighbour in a cubic lattice is 3 edges away (shells of 6, 12, 8, 6, 24, 24, 12 and
    # 30), so cubes differ by 3 times the difference of their edges; the nearest counts.
    expected = np.array([0.02 * 3, 0.0, 1.0, 0.05 * bcc_reach(), np.nan, 1.0, 0.0])
    np.testing.assert_allclose(scores.values, expected, rtol=1e-6)
    assert scores.reasons == (None, None, None, None, "not built", None, None)
    assert scores.failures == {"not built": 1}


def bcc_reach():
    """The 100th neighbour in a body-centred lattice, in edges, by listing."""
    ends = np.stack(np.meshgrid(*[np.arange(-4, 5)] * 3, indexing="ij"), -1).reshape(-1, 3)
    points = np.concatenate([ends, ends + 0.5])
    return np.sort(np.linalg.norm(points, axis=1))[100]


def test_a_comparison_that_fails_costs_its_crystal():
    flat = (np.array([84]), np.zeros((1, 3)), np.diag([3.0, 3.0, 1e-9]))
    scores = creativity([cubic("Po", 3.0), cubic("Fe", 3.0), flat], References([flat]))
    assert np.isnan(scores.values[[0, 2]]).all()
    assert scores.values[1] == 1.0
    assert scores.reasons[0].startswith("comparison with reference 0: ValueError")
    assert scores.reasons[2].startswith("ValueError")


@pytest.mark.parametrize("generated", [[], [None]])
def test_nothing_to_score(generated):
    scores = creativity(generated, References([]))
    assert np.isnan(scores.values).all()
    assert len(scores.values) == len(generated)
