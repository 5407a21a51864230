"""Distillation of a flow model: its pairs, its steps, its checkpoints."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.diffusion.samplers import make_sampler
from chemeleon2_jax.inference.api import load_model
from chemeleon2_jax.inference.generator import Generator
from chemeleon2_jax.runs.config import fit_config
from chemeleon2_jax.stages import build
from chemeleon2_jax.stages.reflow import TEACHER_ITEM, draw_pair
from chemeleon2_jax.training.checkpoint_reader import open_checkpoint
from chemeleon2_jax.training.loop import fit
from tests.tiny import by_name, first_step, fit_quickly, ldm_config, noisy, numbers

pytestmark = pytest.mark.usefixtures("quick_compilation")

FLOW = {
    "diffusion.target": "flow",
    "diffusion.schedule": "straight_line",
    "diffusion.learn_sigma": False,
    "cache_posteriors": False,
}
REFLOW = {**FLOW, "reflow.steps": 3}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tiny_data, tiny_vae):
    """Run folder of a flow model."""
    folder = tmp_path_factory.mktemp("teacher")
    return fit_quickly(ldm_config(tiny_data, tiny_vae.path, ldm_module=FLOW), folder, steps=20)


def distil_config(data, teacher, **options):
    return ldm_config(data, "", ldm_module={"ldm_ckpt_path": str(teacher), **REFLOW, **options})


def test_pairs_are_what_the_teacher_generates(tiny_data, teacher):
    """The latents of a pair are those of sampling with the same key, and its noise their start."""
    model = load_model(teacher)
    sampler = make_sampler("unipc", 3)
    stage = build(distil_config(tiny_data, teacher))
    rows = stage.batches.batch(0).arrays
    draw = jax.jit(
        lambda params, key: draw_pair(model.parts, params, rows, sampler=sampler, key=key)
    )
    noise, latents, is_whole = draw(model.parts.params, jax.random.key(5))
    assert np.asarray(is_whole)[np.asarray(rows.is_crystal)].all()
    generator = Generator(model.parts, sampler)
    generated, _ = jax.device_get(
        generator.program(model.parts.params, model.parts.vae.params, jax.random.key(5), rows)
    )
    is_atom = np.asarray(rows.is_atom)
    np.testing.assert_allclose(
        np.asarray(model.parts.restore(latents))[is_atom], generated[is_atom], atol=1e-4
    )
    assert noise.shape == latents.shape
    assert 0.8 < np.asarray(noise)[is_atom].std() < 1.2
    # A trained flow makes latents of its own from another noise.
    other, *_ = draw(model.parts.params, jax.random.key(6))
    assert np.abs(np.asarray(noise - other)[is_atom]).max() > 0.5


def test_crystals_at_which_the_teacher_fails_are_left_out(tiny_data, teacher):
    """Weights that overflow make no latents: the loss of what is left is a number."""
    stage = build(distil_config(tiny_data, teacher))
    broken = jax.tree.map(lambda x: x * 1e30, stage.frozen[TEACHER_ITEM])
    rows = stage.batches.batch(0).arrays
    parts = load_model(teacher).parts
    _, latents, is_whole = draw_pair(
        parts, broken, rows, sampler=make_sampler("euler", 3), key=jax.random.key(0)
    )
    assert not np.asarray(is_whole)[np.asarray(rows.is_crystal)].any()
    assert np.isfinite(np.asarray(latents)).all()
    frozen = {**stage.frozen, TEACHER_ITEM: broken}
    loss, _ = stage.loss_fn(stage.init_params, frozen, jax.random.key(1), rows)
    assert np.isfinite(float(loss))


def test_the_student_learns_and_the_teacher_stays(tiny_data, teacher, tmp_path):
    config = distil_config(tiny_data, teacher)
    before = by_name(open_checkpoint(teacher).restore("ema"))
    run = fit_quickly(config, tmp_path / "student", steps=4)
    saved = open_checkpoint(run)
    assert numbers(by_name(saved.restore(TEACHER_ITEM))).tolist() == numbers(before).tolist()
    assert np.abs(numbers(by_name(saved.restore("params"))) - numbers(before)).max() > 0
    # An ordinary LDM: it samples, in as many steps as one likes.
    model = load_model(run)
    for steps in (1, 2):
        model.sample(4, steps=steps)
        assert len(model.last_report.num_atoms) == 4
        assert model.last_report.sampler.name == "euler"


def test_resumed_it_goes_on_with_the_same_teacher(tiny_data, teacher, tmp_path):
    """Which is in its own checkpoint: the teacher's run may be gone."""

    def train(folder, steps, *, path=teacher, resume=False):
        config = distil_config(tiny_data, path, **{"scheduler.decay_steps": 4})
        config.trainer.max_steps = steps
        config.trainer.check_val_every_n_epoch = 0
        stage = build(config, resume_dir=folder if resume else None)
        return fit(stage, fit_config(config), run_dir=folder, resume=resume).state

    whole = train(tmp_path / "whole", 4)
    train(tmp_path / "halves", 2)
    halves = train(tmp_path / "halves", 4, path=tmp_path / "gone", resume=True)
    for one, other in zip(*(map(jax.tree.leaves, (whole.params, halves.params))), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_copy_of_the_teacher_has_the_error_of_curved_paths_alone(tiny_data, teacher):
    """Its loss on its own pairs is far below the one on pairs drawn apart, whose lines cross."""
    coupled = first_step(build(distil_config(tiny_data, teacher)))[0]
    apart = first_step(build(distil_config(tiny_data, teacher, **{"reflow.steps": 0})))[0]
    assert 0 < coupled < 0.8 * apart
    moved = build(distil_config(tiny_data, teacher))
    loss, _, gradients = first_step(moved, noisy(moved.init_params))
    assert np.isfinite(loss)
    assert all(np.abs(gradient).max() > 0 for gradient in gradients.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ldm_ckpt_path": ""}, "give its run folder as ldm_module.ldm_ckpt_path"),
        ({"reflow.sampler": "ddpm"}, "'ddpm', which draws noise"),
        ({"reflow.sampler": "unipcc"}, "sampler 'unipcc' is unknown"),
        ({"reflow.steps": 2000}, "1 to 1000 steps, not 2000"),
        ({"diffusion.target": "v", "ldm_ckpt_path": ""}, "straightens the paths of flow models"),
    ],
)
def test_what_cannot_be_distilled(tiny_data, tiny_vae, teacher, options, message):
    config = distil_config(tiny_data, teacher, **options)
    config.ldm_module.vae_ckpt_path = str(tiny_vae.path)
    with pytest.raises(ConfigError, match=message) as caught:
        build(config)
    assert "\n" not in str(caught.value)
