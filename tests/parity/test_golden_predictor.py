"""The predictor gives the numbers of the PyTorch original."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from chemeleon2_jax.models.predictor import standardise, to_units
from chemeleon2_jax.models.sizes import Target
from tests.examples import relative
from tests.parity.golden import golden_rows

TARGETS = ("dft_band_gap", "formation_energy_per_atom")


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_predictor(golden, layout):
    graphdef, params = nnx.split(golden.predictor("predictor")[:2], nnx.Param)
    rows, where = golden_rows(golden.arrays, layout)

    @jax.jit
    def predict(params):
        vae, predictor = nnx.merge(graphdef, params)
        return predictor(vae.encode(rows), rows)

    found = where.take_slots(predict(params))
    assert relative(found, golden.arrays["predictor/out"]) < 1e-5


def test_units(golden):
    *_, sizes = golden.predictor("predictor")
    stats = ((0.797, 1.408), (-1.0, 0.9))
    assert sizes.targets == tuple(Target(n, *m) for n, m in zip(TARGETS, stats, strict=True))
    out = golden.arrays["predictor/out"].astype(np.float64)
    found = to_units(out, sizes)
    for i, name in enumerate(TARGETS):
        assert relative(found[:, i], golden.arrays[f"predictor/predict/{name}"]) < 1e-6
    np.testing.assert_allclose(standardise(found, sizes), out, atol=1e-12)
