"""The VAE gives the numbers of the PyTorch original, in packed and in padded rows."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from chemeleon2_jax.models.losses import LossWeights, foundation_alignment, total_loss, vae_terms
from chemeleon2_jax.models.vae import reconstruct, sample_posterior
from tests.examples import relative
from tests.parity.golden import golden_rows, to_tokens

LAYOUTS = ("packed", "padded")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["vae", "vae_csp", "vae_cspnet"])
def test_outputs(golden, name, layout):
    vae = golden.vae(name)
    rows, where = golden_rows(golden.arrays, layout, edges=name == "vae_cspnet")

    def flat(values):
        return np.concatenate(where.split_atoms(values))

    def expected(key):
        return golden.arrays[f"{name}/{key}"]

    posterior = vae.encode(rows)
    assert relative(flat(posterior.features), expected("encoder_x")) < 1e-5
    moments = np.concatenate([flat(posterior.mean), flat(posterior.logvar)], -1)
    assert relative(moments, expected("moments")) < 1e-5

    decoded = vae.decode(to_tokens(expected("z"), where), rows)
    lengths, angles = (where.take_slots(v) for v in (decoded.lengths_scaled, decoded.angles))
    assert relative(lengths, expected("decoder/lengths")) < 1e-5
    assert relative(angles, expected("decoder/angles")) < 1e-5
    assert relative(flat(decoded.frac_coords), expected("decoder/frac_coords")) < 1e-5
    assert (decoded.atom_logits is None) == (name == "vae_csp")
    if decoded.atom_logits is not None:
        assert relative(flat(decoded.atom_logits), expected("decoder/atom_types")) < 1e-5
    crystal = reconstruct(decoded, rows)
    np.testing.assert_array_equal(flat(crystal.atom_types), expected("reconstruct/atom_types"))
    lattices = where.take_slots(crystal.lattices)
    assert relative(lattices, expected("reconstruct/lattices")) < 1e-5
    assert relative(flat(crystal.frac_coords), expected("reconstruct/frac_coords")) < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["vae", "vae_csp", "vae_cspnet", "vae_fa"])
def test_loss_and_gradient(golden, name, layout):
    arrays = golden.arrays
    vae = golden.vae(name)
    rows, where = golden_rows(arrays, layout, edges=name == "vae_cspnet")
    noise = to_tokens(arrays[f"{name}/eps"], where)
    graphdef, params = nnx.split(vae, nnx.Param)
    weights = LossWeights(atom_types=float(name != "vae_csp"), fa=float(name == "vae_fa"))

    def loss_fn(params):
        vae = nnx.merge(graphdef, params)
        posterior = vae.encode(rows)
        z = sample_posterior(posterior, noise)
        terms = vae_terms(vae.decode(z, rows), posterior, rows)
        if name == "vae_fa":
            features = to_tokens(arrays["vae_fa/mace_features"], where)
            terms["loss_fa"] = foundation_alignment(vae.project(z), features, rows.is_atom)
        return total_loss(terms, weights)

    (total, terms), gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
    names = {key: f"loss_{key}" for key in ("lengths", "angles", "frac_coords", "kl")}
    if name != "vae_csp":
        names["atom_types"] = "loss_atom_types"
    if name == "vae_fa":
        names["fa"] = "fa_loss"
    for ours, theirs in names.items():
        expected = float(arrays[f"{name}/loss/{theirs}"])
        assert float(terms[f"loss_{ours}"]) == pytest.approx(expected, rel=2e-5), ours
    assert float(total) == pytest.approx(float(arrays[f"{name}/loss/total_loss"]), rel=2e-5)
    if f"{name}/grad_norm" in arrays:
        norm = float(optax.tree.norm(gradient))
        assert norm == pytest.approx(float(arrays[f"{name}/grad_norm"]), rel=1e-4)
