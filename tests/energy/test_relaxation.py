"""Results of relaxations."""

import numpy as np

from chemeleon2_jax.energy.guard import prepare
from chemeleon2_jax.energy.relaxation import FinalState, collect_relaxed
from tests.energy.cells import rocksalt


def test_final_states_outside_the_valid_range_are_no_result():
    """Atoms that fell into each other, where potentials may have any energy."""
    start = rocksalt()
    prepared, reasons = prepare([start] * 4 + [None])
    good = prepared[0].positions
    merged, lost = good.copy(), np.full_like(good, np.nan)
    merged[1] = merged[0] + 0.2
    final_states = [
        FinalState(good, prepared[0].lattice, -3.0, True, 7),
        FinalState(merged, prepared[0].lattice, -90.0, True, 8),
        FinalState(lost, prepared[0].lattice, -4.0, False, 9),
        FinalState(good, prepared[0].lattice, np.inf, True, 9),
        None,
    ]
    relaxed = collect_relaxed(prepared, final_states, reasons, corrected=True)
    assert relaxed.energies.reasons == (
        None,
        "diverged: atoms 0.346 angstrom apart",
        "diverged: fractional coordinates are not finite",
        "not finite: inf",
        "not built",
    )
    np.testing.assert_array_equal(relaxed.energies.values, [-3.0] + [np.nan] * 4)
    np.testing.assert_array_equal(relaxed.converged, [True] + [False] * 4)
    np.testing.assert_array_equal(relaxed.steps, [7, 0, 0, 0, 0])
    assert relaxed.structures[1:] == (None,) * 4
    assert relaxed.structures[0].matches(start)
    assert relaxed.energies.corrected is True
