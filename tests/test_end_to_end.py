"""From a folder of CSV files to crystals by the real command lines."""

from __future__ import annotations

import json
import math
import re

import pytest
from pymatgen.core import Structure

import chemeleon2_jax as c2
from chemeleon2_jax.pretrained.hub import REGISTRY
from chemeleon2_jax.pretrained.loading import open_model
from chemeleon2_jax.training.checkpoint_reader import complete_steps, open_checkpoint
from tests.tiny import (
    BROKEN_ID,
    BROKEN_ROW,
    LDM_SPEC,
    TINY_LDM,
    TINY_VAE,
    VAE_SPEC,
    as_flags,
    run_module,
)


@pytest.fixture(params=["tiny_vae", "tiny_ldm"])
def run(request):
    return request.getfixturevalue(request.param)


def test_broken_row_is_named(run, tiny_data):
    lines = [
        f"{tiny_data}/train.csv: 41 of 42 crystals; skipped 1 (1 x unparsable CIF)",
        f"row {BROKEN_ROW} ({BROKEN_ID}): unparsable CIF",
    ]
    for text in (run.output, (run.path / "train.log").read_text()):
        for line in lines:
            assert line in text
    assert run.output.count(BROKEN_ID) == 1


def test_run_folder(run):
    task = run.path.parents[1].name
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", run.path.name)
    config = json.loads((run.path / "config.json").read_text())
    expected = {"train_vae": TINY_VAE, "train_ldm": TINY_LDM}[task]
    for key, value in expected.items():
        if key == "vae_module.match_rate.num_samples":
            value = 4
        found = config
        for name in key.split("."):
            found = found[name]
        assert found == value, key
    directory = run.path / "checkpoints"
    for name in ("last", "best"):
        assert (directory / name).is_symlink()
        assert (directory / name).readlink().parent.name == ""  # relative, in the same folder
    last = open_model(directory / "last")
    assert last.step == 150
    assert last.items == tuple(
        sorted({"params", "train"} | ({"ema", "vae"} if "ldm" in task else set()))
    )
    assert last.meta.config == config
    scores = {
        step: json.loads((path / "progress" / "metadata").read_text())["score"]
        for step, path in complete_steps(directory).items()
    }
    assert open_checkpoint(run.path).step == min(scores, key=scores.get)
    assert f"Run folder: {run.path}" in run.output


def test_events_hold_what_training_was_like(run):
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="reading events back needs the package tensorboard",
    )
    events = reader.EventAccumulator(str(run.path)).Reload()
    tags = set(events.Tags()["scalars"])
    terms = {"tiny_vae": ["loss_kl", "loss_atom_types"], "tiny_ldm": ["loss_mse", "loss_vb"]}
    for name in (
        "loss",
        "lr",
        "grad_norm",
        "crystals_per_second",
        "useful_token_share",
        *terms["tiny_vae" if "train_vae" in str(run.path) else "tiny_ldm"],
    ):
        assert f"train/{name}" in tags
    steps = [event.step for event in events.Scalars("train/loss")]
    assert steps == [50, 100, 150]
    validations = events.Scalars("val/total_loss")
    assert [event.step for event in validations] == [75, 150]
    assert validations[-1].value < validations[0].value
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses[-1] < 0.6 * losses[0]
    assert all(0 < event.value <= 1 for event in events.Scalars("train/useful_token_share"))
    if "train_vae" in str(run.path):
        assert 0 <= events.Scalars("val/match_rate")[-1].value <= 1


def test_output_is_a_line_a_step_and_says_what_comes_next(tiny_vae, tiny_ldm):
    assert f"--config.ldm_module.vae_ckpt_path={tiny_vae.path}" in tiny_vae.output
    assert f"python -m chemeleon2_jax.sample --model={tiny_ldm.path}" in tiny_ldm.output
    for run in (tiny_vae, tiny_ldm):
        assert "Traceback" not in run.output
        lines = run.output.splitlines()
        assert re.fullmatch(r"1 x cpu \(\d+ cores\), f32, 12 crystals a step", lines[-9])
        assert re.match(r"step 1 is done: \d+\.\d s with its compilation, ", lines[-8])
        events = ("step 50/", "validation at step 75 ", "step 100/", "step 150/", "validation at")
        for line, start in zip(lines[-7:-2], events, strict=True):
            assert line.startswith(start)
            assert len(line) <= 100
            assert "loss_kl" not in line


def test_samples_are_crystals(tiny_samples):
    report = json.loads((tiny_samples / "run.json").read_text())
    assert report["num_built"] > 6
    for path in (tiny_samples / "cif").iterdir():
        structure = Structure.from_file(path, site_tolerance=1e-6)
        assert len(structure) in (2, 5, 8)  # the sizes of the training set
        assert math.isfinite(structure.volume)


def test_python_opens_what_the_commands_made(tiny_vae, tiny_ldm):
    vae, ldm = c2.load_model(tiny_vae.path), c2.load_model(tiny_ldm.path)
    structure = Structure.from_spacegroup(
        "Fm-3m", [[4, 0, 0], [0, 4, 0], [0, 0, 4]], ["Li", "F"], [[0] * 3, [0.5] * 3]
    )
    (mean,), (logvar,) = vae.encode([structure])
    assert mean.shape == logvar.shape == (8, 8)
    assert len(ldm.vae.decode([mean])[0]) == 8


@pytest.mark.parametrize(
    ("spec", "flags", "message"),
    [
        (
            LDM_SPEC,
            ["--config.ldm_module.vae_path=x"],
            "unknown config key 'ldm_module.vae_path'. Did you mean 'ldm_module.vae_ckpt_path'?",
        ),
        (
            VAE_SPEC,
            ["--config.data.dir=x"],
            "unknown config key 'data.dir'. Did you mean 'data.data_dir'?",
        ),
        (
            VAE_SPEC + "x",
            [],
            "train_vae has no experiment 'tiny/vae_dngx'. Did you mean 'tiny/vae_dng'?",
        ),
    ],
)
def test_misspelt_names(spec, flags, message):
    done = run_module("train", f"--config={spec}", *flags)
    assert done.code == 1
    assert message in done.output
    assert done.output.startswith("error: ")
    assert done.output.count("\n") == 1


@pytest.mark.parametrize(
    ("spec", "values", "message"),
    [
        (
            LDM_SPEC,
            {"ldm_module.vae_ckpt_path": "logs/no/run"},
            "there is no logs/no/run. Give a run folder, a checkpoint folder, a PyTorch .ckpt "
            "file, or the key of a published checkpoint: " + ", ".join(REGISTRY),
        ),
        (
            VAE_SPEC,
            {"data.data_dir": "no/crystals"},
            "no/crystals is not a folder; data.data_dir must hold train.csv[.gz]",
        ),
    ],
)
def test_what_is_missing_is_one_line_and_leaves_no_run(tmp_path, spec, values, message):
    done = run_module("train", f"--config={spec}", *as_flags({**values, "paths.log_dir": tmp_path}))
    assert done.code == 1
    assert done.output.splitlines()[1:] == [f"error: {message}"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
