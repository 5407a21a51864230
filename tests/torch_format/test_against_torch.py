"""Models from files of PyTorch compute the same numbers as in PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

import chemeleon2_jax as c2
from tests.examples import random_crystals, relative

torch = pytest.importorskip("torch")

from pymatgen.core import Structure  # noqa: E402

from tests.torch_format import torch_models  # noqa: E402

SIZES = (3, 1, 6)


@pytest.fixture(scope="module")
def crystals():
    """Arrays (atom types, coordinates, cell) of each crystal."""
    all_of_them = random_crystals(SIZES)
    return [all_of_them.crystal(i) for i in range(len(SIZES))]


def tensors(crystal):
    types, coords, cell = crystal
    return torch.tensor(types, dtype=torch.long), torch.tensor(coords), torch.tensor(cell)


@pytest.fixture(scope="module")
def vae_file(tmp_path_factory):
    """A VAE in PyTorch and its file."""
    vae = torch_models.randomise(torch_models.VAE())
    path = tmp_path_factory.mktemp("torch") / "vae.ckpt"
    torch_models.save(path, vae, encoder=vae.encoder, decoder=vae.decoder)
    return vae, path


def test_encoder(vae_file, crystals):
    torch_vae, path = vae_file
    vae = c2.load_model(path)
    assert vae.parts.sizes.encoder.nhead == torch_models.HEADS  # only the pickled module tells it
    means, logvars = vae.encode([Structure(cell, z, x) for z, x, cell in crystals])
    with torch.no_grad():
        moments = [torch_vae.quant_conv(torch_vae.encoder(tensors(c))).numpy() for c in crystals]
    expected = np.concatenate(moments)
    actual = np.concatenate([np.concatenate(means), np.concatenate(logvars)], -1)
    assert relative(actual, expected) < 1e-5


def test_decoder(vae_file):
    torch_vae, path = vae_file
    rng = np.random.default_rng(0)
    latents = [rng.normal(size=(n, torch_models.LATENT)).astype(np.float32) for n in SIZES]
    sizes, graphdef, params = (getattr(c2.load_model(path).parts, k) for k in _PARTS)
    actual = _decode(sizes, graphdef, params, latents)
    for (logits, coords, cell), z in zip(actual, latents, strict=True):
        with torch.no_grad():
            x = torch_vae.decoder(torch_vae.post_quant_conv(torch.tensor(z)))
            heads = (torch_vae.decoder.atom_types_head(x), torch_vae.decoder.frac_coords_head(x))
            lattice = torch_vae.decoder.lattice_head(x.mean(0))
        assert relative(logits, heads[0].numpy()) < 1e-5
        assert relative(coords, heads[1].numpy()) < 1e-5
        assert relative(cell, lattice.numpy()) < 1e-5


_PARTS = ("sizes", "graphdef", "params")


def _decode(sizes, graphdef, params, latents):
    """Outputs of the decoder's heads for each crystal, all in the same rows."""
    from flax import nnx

    from tests.examples import packed

    batch = packed(random_crystals(SIZES))
    z = batch.to_tokens(np.concatenate(latents))
    decoded = nnx.merge(graphdef, params).decode(z, batch.rows)
    split, take = batch.where.split_atoms, batch.where.take_slots
    cells = np.concatenate([take(decoded.lengths_scaled), take(decoded.angles)], -1)
    return list(zip(split(decoded.atom_logits), split(decoded.frac_coords), cells, strict=True))


@pytest.mark.parametrize("learn_sigma", [True, False])
def test_denoiser(learn_sigma, vae_file, tmp_path):
    ldm = torch_models.randomise(torch_models.LDM(learn_sigma=learn_sigma))
    ldm.vae.load_state_dict(vae_file[0].state_dict())
    path = tmp_path / "ldm.ckpt"
    (tmp_path / "vae.ckpt").write_bytes(vae_file[1].read_bytes())
    torch_models.save(path, ldm, denoiser=ldm.denoiser, vae_ckpt_path="ckpts/vae.ckpt")
    model = c2.load_model(path)
    assert model.parts.latent_std == np.float32(1.7)
    rng = np.random.default_rng(0)
    latents = [rng.normal(size=(n, torch_models.LATENT)).astype(np.float32) for n in SIZES]
    times = [0, 321, 999]
    actual = model.denoise(latents, times)
    with torch.no_grad():
        expected = [
            ldm.denoiser(torch.tensor(z), t, 0.0).numpy()
            for z, t in zip(latents, times, strict=True)
        ]
    assert relative(np.concatenate(actual), np.concatenate(expected)) < 2e-5


def test_conditions(vae_file, tmp_path):
    widths = {"composition": 100, "dft_band_gap": 1, "space_group": 9}
    ldm = torch_models.randomise(torch_models.LDM(learn_sigma=True, widths=widths))
    ldm.vae.load_state_dict(vae_file[0].state_dict())
    options = {
        "condition_type": {
            "composition": "composition",
            "dft_band_gap": "float",
            "space_group": "categorical",
        },
        "hidden_dim": torch_models.HIDDEN,
        "drop_prob": 0.1,
        "stats": {"dft_band_gap": {"mean": 1.0, "std": 2.0}},
        "num_classes": 9,
    }
    path = tmp_path / "ldm.ckpt"
    torch_models.save(path, ldm, denoiser=ldm.denoiser, condition_module=options)
    model = c2.load_model(path, vae=vae_file[1])
    z = np.random.default_rng(0).normal(size=(3, torch_models.LATENT)).astype(np.float32)
    asked = {"composition": "Na2Cl4", "dft_band_gap": [None, 2.5], "space_group": [4, None]}
    actual = model.denoise([z, z], [10, 500], conditions=asked)
    formula = torch.zeros(1, 100)
    formula[0, 11], formula[0, 17] = 1 / 3, 2 / 3
    inputs = [
        {
            "composition": formula,
            "dft_band_gap": None,
            "space_group": torch.eye(9)[4:5],
        },
        {"composition": formula, "dft_band_gap": torch.tensor([[0.75]]), "space_group": None},
    ]
    for eps, t, values in zip(actual, (10, 500), inputs, strict=True):
        with torch.no_grad():
            embedding = ldm.condition_module(values)
            expected = ldm.denoiser(torch.tensor(z), t, embedding).numpy()
        assert relative(eps, expected) < 2e-5
