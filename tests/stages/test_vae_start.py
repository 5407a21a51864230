"""A VAE that starts from the weights of another."""

import numpy as np
import pytest

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.stages import build
from chemeleon2_jax.training.checkpoint_reader import open_checkpoint
from tests.tiny import by_name, fit_quickly, vae_config


@pytest.fixture(autouse=True)
def _quickly(quick_compilation):
    pass


def started(data, path, **module):
    return build(vae_config(data, vae_module={"vae_ckpt_path": str(path), **module}))


def test_starts_from_the_weights(tiny_data, tiny_vae):
    first = by_name(started(tiny_data, tiny_vae.path).init_params)
    saved = by_name(open_checkpoint(tiny_vae.path).restore("params"))
    assert first.keys() == saved.keys()
    assert all(np.array_equal(first[name], saved[name]) for name in saved)


def test_starts_from_the_vae_of_a_diffusion_model(tiny_data, tiny_vae, tiny_ldm):
    alone, inside = (
        by_name(started(tiny_data, run.path).init_params) for run in (tiny_vae, tiny_ldm)
    )
    assert all(np.array_equal(alone[name], inside[name]) for name in alone)


def test_other_sizes_are_named(tiny_data, tiny_vae, csp_run):
    with pytest.raises(CheckpointError) as caught:
        started(tiny_data, tiny_vae.path, **{"latent_dim": 4, "decoder.num_layers": 2})
    assert "latent_dim = 8 (here 4), decoder.num_layers = 1 (here 2): set these" in str(
        caught.value
    )
    with pytest.raises(CheckpointError, match=r"encoder\.name = 'cspnet' \(here 'transformer'\)"):
        started(tiny_data, csp_run)


def test_a_resumed_run_needs_its_start_no_more(tiny_data, tiny_vae, tmp_path):
    config = vae_config(tiny_data, vae_module={"vae_ckpt_path": str(tiny_vae.path)})
    run = fit_quickly(config, tmp_path / "run", steps=1)
    config.vae_module.vae_ckpt_path = "gone"
    build(config, resume_dir=run)
    with pytest.raises(CheckpointError, match="there is no gone"):
        build(config)
