"""The public objects, opened from the original's files, give the original's numbers."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Structure

import chemeleon2_jax as c2
from chemeleon2_jax.pretrained.loading import open_model
from chemeleon2_jax.torch_format.content import state_dict_of
from chemeleon2_jax.torch_format.files import write_orbax, write_torch
from chemeleon2_jax.torch_format.from_torch import convert_file
from chemeleon2_jax.torch_format.model import Options
from chemeleon2_jax.torch_format.torch_file import open_torch_file
from tests.examples import relative

FILES = (
    "vae",
    "vae_csp",
    "vae_cspnet",
    "vae_fa",
    "ldm",
    "ldm_fixed_sigma",
    "ldm_cond",
    "ldm_cond_symmetry",
    "ldm_lora",
    "predictor",
)


@pytest.fixture(scope="module")
def structures(golden):
    """The crystals as the original had them after its preprocessing."""
    arrays = golden.arrays
    ends = np.cumsum(arrays["batch/num_atoms"])[:-1]
    types, coords = (np.split(arrays[f"batch/{k}"], ends) for k in ("atom_types", "frac_coords"))
    return [
        Structure(lattice, z, x)
        for lattice, z, x in zip(arrays["batch/lattices"], types, coords, strict=True)
    ]


def split(golden, values):
    """Values of all atoms to those of each crystal."""
    return np.split(values, np.cumsum(golden.arrays["batch/num_atoms"])[:-1])


@pytest.mark.parametrize("name", ["vae", "vae_csp", "vae_cspnet"])
def test_encode_and_decode(golden, structures, name):
    arrays = golden.arrays
    vae = c2.load_model(golden.folder / f"{name}.ckpt")
    means, logvars = vae.encode(structures)
    moments = np.concatenate([np.concatenate(means), np.concatenate(logvars)], -1)
    assert relative(moments, arrays[f"{name}/moments"]) < 1e-5
    types = [np.array(s.atomic_numbers) for s in structures]
    options = {"atom_types": types} if name == "vae_csp" else {}
    crystals = vae.decode(split(golden, arrays[f"{name}/z"]), **options)
    found = np.concatenate([s.atomic_numbers for s in crystals])
    np.testing.assert_array_equal(found, arrays[f"{name}/reconstruct/atom_types"])
    lattices = np.stack([s.lattice.matrix for s in crystals])
    assert relative(lattices, arrays[f"{name}/reconstruct/lattices"]) < 1e-5
    coords = np.concatenate([s.frac_coords for s in crystals])
    theirs = arrays[f"{name}/reconstruct/frac_coords"]
    away = np.abs(coords - theirs - np.round(coords - theirs)).max()
    assert away / np.abs(theirs).max() < 1e-5


def conditions_of(golden, name):
    """The conditions of the crystals, as users write them."""
    facts = golden.facts
    return {
        "ldm_cond": {k: facts[k] for k in ("composition", "dft_band_gap")},
        "ldm_cond_symmetry": {k: facts[k] for k in ("chemical_system", "space_group")},
    }.get(name)


@pytest.mark.parametrize(
    "name", ["ldm", "ldm_fixed_sigma", "ldm_cond", "ldm_cond_symmetry", "ldm_lora"]
)
def test_denoise(golden, name):
    arrays = golden.arrays
    ldm = c2.load_model(golden.folder / f"{name}.ckpt")
    sizes = arrays["batch/num_atoms"]
    latents = [x[:n] for x, n in zip(arrays[f"{name}/x_start"], sizes, strict=True)]
    found = ldm.denoise(latents, arrays[f"{name}/t"], conditions=conditions_of(golden, name))
    theirs = [out[:n] for out, n in zip(arrays[f"{name}/denoiser_out"], sizes, strict=True)]
    assert relative(np.concatenate(found), np.concatenate(theirs)) < 2e-5
    assert ldm.parts.latent_std == float(arrays[f"{name}/latent_std"])


def test_predict(golden, structures):
    found = c2.load_model(golden.folder / "predictor.ckpt").predict(structures)
    assert sorted(found) == ["dft_band_gap", "formation_energy_per_atom"]
    for target, values in found.items():
        assert relative(values, golden.arrays[f"predictor/predict/{target}"]) < 1e-5


@pytest.mark.parametrize("name", ["ldm", "ldm_fixed_sigma", "ldm_lora"])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_samples_are_crystals(golden, name, sampler):
    """DDPM with the interleaved variance runs in padded rows."""
    ldm = c2.load_model(golden.folder / f"{name}.ckpt")
    crystals = ldm.sample(num_atoms=[4, 8], num_samples=4, sampler=sampler, steps=4, seed=1)
    assert len(crystals) == 4
    again = ldm.sample(num_atoms=[4, 8], num_samples=4, sampler=sampler, steps=4, seed=1)
    assert [s.as_dict() for s in again] == [s.as_dict() for s in crystals]


def test_averages_are_other_weights(golden):
    raw, averages = (
        convert_file(golden.folder / "ldm.ckpt", options)
        for options in (Options(), Options(ema=True))
    )
    kernels = [model.trees["params"]["final"]["kernel"] for model in (raw, averages)]
    assert 0 < np.abs(kernels[0] - kernels[1]).max() < 0.1 * np.abs(kernels[0]).max()
    assert raw.meta.ldm.dit == averages.meta.ldm.dit


@pytest.mark.parametrize("name", FILES)
def test_every_bit_comes_back(golden, name, tmp_path):
    write_orbax(convert_file(golden.folder / f"{name}.ckpt"), tmp_path / "model")
    write_torch(open_model(tmp_path / "model"), tmp_path / "back.ckpt")
    with (
        open_torch_file(golden.folder / f"{name}.ckpt") as theirs,
        open_torch_file(tmp_path / "back.ckpt") as ours,
    ):
        before, after = state_dict_of(theirs.content), state_dict_of(ours.content)
        assert list(before) == list(after)
        for tensor, array in before.items():
            assert after[tensor].dtype == array.dtype
            assert after[tensor].read().tobytes() == array.read().tobytes(), tensor
