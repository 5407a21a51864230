"""Materials Project's corrections, against the published table of MP2020."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from chemeleon2_jax.common.errors import EnergyError
from chemeleon2_jax.common.scores import check_values
from chemeleon2_jax.energy.correction import correct_energies, corrections
from chemeleon2_jax.energy.results import Energies
from tests.energy.cells import fcc, rocksalt

LAYERED = Structure(
    Lattice.cubic(4.2), ["Li", "Mn", "O", "O"], [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0], [0, 0.5, 0]]
)
# eV an atom of the element (Wang et al. 2021): oxide -0.687, chloride -0.614, sulfide -0.503, Mn in
# an oxide -1.668.
OXIDE, CHLORIDE, MN = -0.687, -0.614, -1.668


def test_table():
    structures = [
        LAYERED,
        rocksalt("Mg", "O", 4.2),
        rocksalt(),
        fcc("Cu", 3.6),
        None,
        rocksalt("Mn", "Al", 5.0),  # no anion, so no U
    ]
    added = corrections(structures)
    expected = [(MN + 2 * OXIDE) / 4, OXIDE / 2, CHLORIDE / 2, 0.0, np.nan, 0.0]
    np.testing.assert_allclose(added.values, expected, atol=1e-3)
    assert added.reasons[4] == "not built"


def test_corrected_energies():
    uncorrected = Energies(*check_values([-6.575, None], [None, "a reason"]), corrected=False)
    energies = correct_energies([LAYERED, LAYERED], uncorrected)
    assert energies.corrected is True
    # What CHGNet, which is trained on corrected energies, predicts for such a LiMnO2 is -7.333.
    assert energies.values[0] == pytest.approx(-7.335, abs=2e-3)
    assert energies.reasons == (None, "a reason")
    with pytest.raises(EnergyError, match="already"):
        correct_energies([LAYERED] * 2, energies)
