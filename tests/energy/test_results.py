"""Values and the reasons for having none."""

import numpy as np
import pytest

from chemeleon2_jax.energy.results import Energies, PerCrystal, check_values


def test_values_that_do_not_count():
    values, reasons = check_values(
        [1.0, None, 2.0, np.nan], [None, None, "unknown element: Po", None]
    )
    energies = Energies(values, reasons, corrected=False)
    np.testing.assert_array_equal(energies.values, [1.0, np.nan, np.nan, np.nan])
    assert energies.reasons == (None, "no value", "unknown element: Po", "not finite: nan")
    assert energies.failures == {"no value": 1, "unknown element": 1, "not finite": 1}


@pytest.mark.parametrize(("value", "reason"), [(1.0, "a reason"), (np.nan, None)])
def test_a_value_or_a_reason(value, reason):
    with pytest.raises(ValueError, match="either a finite value or a reason"):
        PerCrystal(np.array([value]), (reason,))
