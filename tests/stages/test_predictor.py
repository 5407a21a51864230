"""The predictor stage: step, options, validation, checkpoint."""

from __future__ import annotations

import csv
from dataclasses import replace

import jax
import numpy as np
import pytest
from pymatgen.core import Structure

from chemeleon2_jax.common.errors import ConfigError, DatasetError
from chemeleon2_jax.data.datasets import load_split
from chemeleon2_jax.inference.api import load_model
from chemeleon2_jax.models.predictor import to_units
from chemeleon2_jax.models.sizes import Target
from chemeleon2_jax.runs.config import fit_config
from chemeleon2_jax.stages import build
from chemeleon2_jax.training.checkpoint_reader import open_checkpoint
from chemeleon2_jax.training.loop import fit
from tests.lowering import lower_train_step
from tests.tiny import ROOT, TINY_DATA, first_step, make_config, make_crystals, meta_of, numbers

pytestmark = pytest.mark.usefixtures("quick_compilation")

SPEC = f"{ROOT}/configs/train_predictor.py:tiny/predictor_density"
NAMES = ("density", "atoms")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny crystals with two properties."""
    folder = tmp_path_factory.mktemp("properties")
    crystals = make_crystals()
    for split, part in (("train", crystals), ("val", crystals[2::6]), ("test", crystals[4::6])):
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["material_id", "cif", *NAMES])
            for i, s in enumerate(part):
                writer.writerow([f"{split}-{i}", s.to(fmt="cif"), float(s.density), len(s)])
    return folder


def config_of(folder, vae, **changes):
    overrides = {
        **TINY_DATA,
        "data.data_dir": str(folder),
        "data.target_condition": ",".join(NAMES),
        "predictor_module.vae_ckpt_path": str(vae),
        "predictor_module.optimizer.lr": 0.01,
        "predictor_module.scheduler.name": "constant",
        "trainer.max_steps": 4,
        "trainer.check_val_every_n_epoch": 0,
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    return make_config(SPEC, overrides)


@pytest.fixture(scope="module")
def stage(folder, tiny_vae):
    return build(config_of(folder, tiny_vae.path))


def test_step_reaches_every_parameter(stage):
    loss, terms, gradients = first_step(stage)
    assert set(terms) == {f"loss_{name}" for name in NAMES}
    assert loss == pytest.approx(np.mean(list(terms.values())), rel=1e-5)
    assert set(gradients) >= {"fc1/kernel", "norm2/scale", "fc3/bias"}
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), name
        assert np.abs(gradient).max() > 0, name


def test_targets_are_standardised_with_the_training_set(stage):
    targets = stage.batches.targets
    np.testing.assert_allclose(targets.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(targets.std(0), 1.0, atol=1e-4)
    densities = [s.density for s in make_crystals()]
    assert meta_of(stage).predictor.targets[0].mean == pytest.approx(np.mean(densities), 1e-4)


def test_statistics_from_the_config(folder, tiny_vae, stage):
    text = "density:5.0:2.0"
    other = build(config_of(folder, tiny_vae.path, predictor_module__target_conditions=text))
    targets = meta_of(other).predictor.targets
    assert targets[0] == Target("density", mean=5.0, std=2.0)
    assert targets[1] == meta_of(stage).predictor.targets[1]


def test_padding_of_a_batch_has_no_weight(stage):
    """Padded for five devices: the same loss."""
    padded = replace(stage, batches=replace(stage.batches, num_devices=5))
    assert len(padded.batches.batch(0).arrays["weights"]) == 15
    assert padded.batches.batch(0).arrays["weights"].sum() == 12
    (loss, _, gradients), (expected, _, expected_gradients) = map(first_step, (padded, stage))
    assert loss == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(
        numbers(gradients), numbers(expected_gradients), rtol=1e-4, atol=1e-7
    )


def test_it_learns_and_predicts_in_units(folder, tiny_vae, tmp_path):
    config = config_of(folder, tiny_vae.path, trainer__max_steps=400)
    config.trainer.check_val_every_n_epoch = 50
    result = fit(build(config), fit_config(config), run_dir=tmp_path / "run")
    assert result.values["val/r2_density"] > 0.8
    spread = np.abs([s.density - 4.0 for s in make_crystals()]).mean()
    assert result.values["val/mae_density"] < 0.5 * spread
    model = load_model(tmp_path / "run")
    val = load_split("", "val", data_dir=folder, targets=NAMES).crystals
    # The crystals of the stage: reduced, and coordinates of 1 not wrapped to 0.
    arrays = [val.crystal(i) for i in range(len(val))]
    crystals = [Structure(cell, types, frac) for types, frac, cell in arrays]
    predicted = model.predict(crystals)
    assert set(predicted) == set(NAMES)
    error = np.abs(predicted["density"] - val.targets["density"]).mean()
    best = open_checkpoint(tmp_path / "run").progress.values["val/mae_density"]
    assert error == pytest.approx(best, rel=0.02)
    assert model.vae.parts.sizes == load_model(tiny_vae.path).parts.sizes


def test_stopped_and_resumed_is_the_same(folder, tiny_vae, tmp_path):
    whole = config_of(folder, tiny_vae.path)
    expected = fit(build(whole), fit_config(whole), run_dir=tmp_path / "whole").state.params
    half = config_of(folder, tiny_vae.path, trainer__max_steps=2)
    fit(build(half), fit_config(half), run_dir=tmp_path / "half")
    resumed = build(whole, resume_dir=tmp_path / "half")
    again = fit(resumed, fit_config(whole), run_dir=tmp_path / "half", resume=True).state.params
    jax.tree.map(np.testing.assert_array_equal, again, expected)


def test_pictures_show_the_validation(stage):
    pictures = stage.validate(stage.init_params, {}).pictures
    assert set(pictures) == {f"val/parity_{name}" for name in NAMES}
    for pixels in pictures.values():
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert len(np.unique(pixels)) > 10


def test_value_names_are_those_of_the_validation(stage):
    values = stage.validate(stage.init_params, {}).values
    assert set(values) == set(stage.value_names)
    assert all(np.isfinite(list(values.values())))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_step_lowers_for_accelerators(folder, tiny_vae, stage, platform):
    config = config_of(folder, tiny_vae.path)
    exported = lower_train_step(stage, fit_config(config), platform=platform)
    assert exported.platforms == (platform,)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"data__target_condition": ""}, ConfigError, "target_condition is empty"),
        ({"data__target_condition": "densty"}, DatasetError, "density"),
        ({"predictor_module__vae_ckpt_path": ""}, ConfigError, "vae_ckpt_path is empty"),
        ({"predictor_module__target_conditions": "density:1"}, ConfigError, "name:mean:std"),
        ({"predictor_module__target_conditions": "gap:1:2"}, ConfigError, "names gap"),
        ({"predictor_module__target_conditions": "density:1:0"}, ConfigError, "nothing to learn"),
    ],
)
def test_what_cannot_be_trained(folder, tiny_vae, changes, error, message):
    with pytest.raises(error, match=message):
        build(config_of(folder, tiny_vae.path, **changes))


def test_units_are_those_of_the_file(stage):
    sizes = meta_of(stage).predictor
    assert [target.name for target in sizes.targets] == list(NAMES)
    known = to_units(stage.batches.targets, sizes)
    np.testing.assert_allclose(known[:, 1], [len(s) for s in make_crystals()], rtol=1e-5)
