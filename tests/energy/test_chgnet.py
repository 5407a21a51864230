"""CHGNet, whose weights come with its package."""

import numpy as np
import pytest

pytest.importorskip("chgnet", reason="needs CHGNet (the extra chgnet)")

from chemeleon2_jax.energy.model import energy_model
from tests.energy.cells import fcc, rocksalt


def test_energies_and_relaxation():
    model = energy_model("chgnet")
    assert model.corrected is True
    gas = fcc("Ne", length=14.0)
    structures = [rocksalt(length=5.7), fcc("Cu", length=3.6), None, fcc("Po", length=4.7), gas]
    energies = model.energies(structures)
    # Materials Project's corrected energies: NaCl -3.70 (MP2020), Cu -4.10 eV/atom.
    np.testing.assert_allclose(energies.values[:2], [-3.70, -4.10], atol=0.05)
    assert energies.reasons[2:4] == ("not built", "unknown element: Po")
    assert "isolated" in energies.reasons[4]
    relaxed = model.relax(structures[:1], steps=100)
    assert relaxed.converged.tolist() == [True]
    assert relaxed.energies.values[0] <= energies.values[0] + 1e-4
    # PBE's lattice constant of NaCl.
    assert relaxed.structures[0].lattice.a == pytest.approx(5.69, abs=0.06)
