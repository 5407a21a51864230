"""The VAE gives the numbers of the PyTorch original, in packed and in padded rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

sys.path.insert(0, str(Path(__file__).parent))
from golden import golden_rows, load_vae, read_state_dict, relative

from chemeleon2_jax.models.losses import LossWeights, foundation_alignment, total_loss, vae_terms
from chemeleon2_jax.models.vae import reconstruct, sample_posterior

LAYOUTS = ("packed", "padded")


@pytest.fixture(scope="module")
def golden(shared_dir):
    folder = shared_dir / "golden"
    arrays = np.load(folder / "golden.npz")
    return folder, arrays, json.loads((folder / "crystals.json").read_text())["size"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["vae", "vae_csp", "vae_cspnet"])
def test_outputs(golden, name, layout):
    folder, arrays, size = golden
    vae = load_vae(read_state_dict(folder / f"{name}.ckpt"), size)
    rows, where = golden_rows(arrays, layout, edges=name == "vae_cspnet")
    posterior = vae.encode(rows)
    flat = lambda values: np.concatenate(where.split_atoms(values))  # noqa: E731
    assert relative(flat(posterior.features), arrays[f"{name}/encoder_x"]) < 1e-5
    moments = np.concatenate([flat(posterior.mean), flat(posterior.logvar)], -1)
    assert relative(moments, arrays[f"{name}/moments"]) < 1e-5

    z = _to_rows(arrays[f"{name}/z"], where, rows)
    decoded = vae.decode(z, rows)
    assert relative(where.take_slots(decoded.lengths_scaled), arrays[f"{name}/decoder/lengths"]) < 1e-5
    assert relative(where.take_slots(decoded.angles), arrays[f"{name}/decoder/angles"]) < 1e-5
    assert relative(flat(decoded.frac_coords), arrays[f"{name}/decoder/frac_coords"]) < 1e-5
    if decoded.atom_logits is not None:
        assert relative(flat(decoded.atom_logits), arrays[f"{name}/decoder/atom_types"]) < 1e-5
    crystal = reconstruct(decoded, rows)
    np.testing.assert_array_equal(flat(crystal.atom_types), arrays[f"{name}/reconstruct/atom_types"])
    assert relative(where.take_slots(crystal.lattices), arrays[f"{name}/reconstruct/lattices"]) < 1e-5
    assert relative(flat(crystal.frac_coords), arrays[f"{name}/reconstruct/frac_coords"]) < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["vae", "vae_csp", "vae_cspnet", "vae_fa"])
def test_loss_and_gradient(golden, name, layout):
    folder, arrays, size = golden
    vae = load_vae(read_state_dict(folder / f"{name}.ckpt"), size)
    rows, where = golden_rows(arrays, layout, edges=name == "vae_cspnet")
    noise = _to_rows(arrays[f"{name}/eps"], where, rows)
    graphdef, params = nnx.split(vae, nnx.Param)
    weights = LossWeights(atom_types=float(name != "vae_csp"))

    def loss_fn(params):
        vae = nnx.merge(graphdef, params)
        posterior = vae.encode(rows)
        z = sample_posterior(posterior, noise)
        terms = vae_terms(vae.decode(z, rows), posterior, rows)
        if name == "vae_fa":
            features = _to_rows(arrays["vae_fa/mace_features"], where, rows)
            terms["loss_fa"] = foundation_alignment(vae.project(z), features, rows.is_atom)
        return total_loss(terms, weights)

    (total, terms), gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
    terms["fa_loss"] = terms.get("loss_fa", 0.0)
    for term in ("loss_atom_types", "loss_lengths", "loss_angles", "loss_frac_coords", "loss_kl", "fa_loss"):
        if term in terms and (term != "fa_loss" or name == "vae_fa"):
            assert float(terms[term]) == pytest.approx(float(arrays[f"{name}/loss/{term}"]), rel=2e-5)
    if name != "vae_fa":
        assert float(total) == pytest.approx(float(arrays[f"{name}/loss/total_loss"]), rel=2e-5)
        norm = float(optax.tree.norm(gradient))
        assert norm == pytest.approx(float(arrays[f"{name}/grad_norm"]), rel=1e-4)


def _to_rows(values, where, rows):
    out = np.zeros((rows.position.size, values.shape[-1]), np.float32)
    out[where.token_index] = values
    return jnp.asarray(out.reshape(*rows.position.shape, -1))
