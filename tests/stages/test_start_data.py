"""The data of a run: by default those of the model that it starts from; the same in a resume."""

import json
import logging
import shutil
from pathlib import Path

import pytest

from chemeleon2_jax import train
from chemeleon2_jax.common.errors import ConfigError, DatasetError
from chemeleon2_jax.stages import build
from chemeleon2_jax.stages.start_data import check_can_sample, check_resumed_data
from tests.tiny import (
    LDM_SPEC,
    RL_SPEC,
    ROOT,
    fit_quickly,
    ldm_config,
    make_config,
    make_crystals,
    vae_config,
    write_split,
)

PREDICTOR_SPEC = f"{ROOT}/configs/train_predictor.py:tiny/predictor_density"


@pytest.fixture(autouse=True)
def _quickly(quick_compilation):
    pass


def plan(spec, **overrides):
    values = {key.replace("__", "."): value for key, value in overrides.items()}
    return train.make_plan(make_config(spec, values), values)


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        (LDM_SPEC, "ldm_module__vae_ckpt_path"),
        (LDM_SPEC, "ldm_module__ldm_ckpt_path"),
        (PREDICTOR_SPEC, "predictor_module__vae_ckpt_path"),
        (RL_SPEC, "rl_module__ldm_ckpt_path"),
    ],
)
def test_data_are_those_of_the_start(tiny_data, tiny_vae, tiny_ldm, spec, key):
    start = tiny_ldm.path if "ldm_ckpt" in key else tiny_vae.path
    made = plan(spec, **{key: str(start)})
    assert made.config.data.data_dir == str(tiny_data)
    assert made.notes == (
        f"data: {tiny_data}, those of {start}; --config.data.data_dir or --config.data.name gives "
        "it others",
    )
    last = plan(spec, **{key: str(start / "checkpoints" / "last")})
    assert last.config.data.data_dir == str(tiny_data)


def test_named_data_stay_and_are_said(tiny_data, tiny_vae):
    vae = str(tiny_vae.path)
    made = plan(LDM_SPEC, ldm_module__vae_ckpt_path=vae, data__name="prototypes")
    assert (made.config.data.name, made.config.data.data_dir) == ("prototypes", "")
    assert made.notes == (f"data: prototypes; {vae} was trained on {tiny_data}",)
    kept = plan(LDM_SPEC, ldm_module__vae_ckpt_path=vae, data__inherit=False)
    assert kept.config.data.data_dir == ""
    assert kept.notes == made.notes


@pytest.fixture
def renamed_vae(tmp_path, tiny_vae, tiny_data):
    """A copy of the VAE's run whose data have other names of columns and a limit of atoms."""
    folder = shutil.copytree(tiny_vae.path / "checkpoints" / "best", tmp_path / "vae")
    meta = json.loads((folder / "meta" / "metadata").read_text())
    meta["config"]["data"] |= {"rename": "structure:cif,gap:x", "max_atoms": 7, "batch_size": 99}
    (folder / "meta" / "metadata").write_text(json.dumps(meta))
    return str(folder)


def test_preprocessing_comes_with_the_data(renamed_vae, tiny_data):
    data = plan(LDM_SPEC, ldm_module__vae_ckpt_path=renamed_vae).config.data
    assert (data.rename, data.max_atoms) == ("structure:cif,gap:x", 7)
    assert data.batch_size == 64  # the run's own
    named = {"data__data_dir": str(tiny_data), "data__max_atoms": 0, "data__rename": "band gap:x"}
    data = plan(LDM_SPEC, ldm_module__vae_ckpt_path=renamed_vae, **named).config.data
    assert (data.rename, data.max_atoms) == ("structure:cif,band gap:x", 0)
    data = plan(
        LDM_SPEC, ldm_module__vae_ckpt_path=renamed_vae, data__name="prototypes"
    ).config.data
    assert (data.rename, data.max_atoms) == ("", 0)


def test_data_that_are_gone_are_named(renamed_vae):
    path = Path(renamed_vae) / "meta" / "metadata"
    meta = json.loads(path.read_text())
    meta["config"]["data"]["data_dir"] = "/nowhere/crystals"
    path.write_text(json.dumps(meta))
    with pytest.raises(ConfigError, match=r"trained on data\.data_dir = /nowhere/crystals, which"):
        plan(LDM_SPEC, ldm_module__vae_ckpt_path=renamed_vae)


def test_models_that_name_no_data_change_nothing():
    made = plan(LDM_SPEC, ldm_module__vae_ckpt_path="mp_20_vae")
    assert (made.config.data.name, made.notes) == ("prototypes", ())


# --- resumed runs ---------------------------------------------------------------------------------


@pytest.fixture
def changing(tmp_path):
    """A folder of data, and a run on it."""
    folder = tmp_path / "data"
    crystals = make_crystals()[:12]
    for split in ("train", "val"):
        write_split(folder / f"{split}.csv", crystals)
    run = fit_quickly(vae_config(folder), tmp_path / "run", steps=1)
    return folder, run, crystals


def test_other_contents_are_refused_or_said(changing, caplog):
    folder, run, crystals = changing
    config = vae_config(folder)
    build(config, resume_dir=run)
    write_split(folder / "val.csv", crystals[:11])
    with pytest.raises(DatasetError) as caught:
        build(config, resume_dir=run)
    text = str(caught.value)
    assert "step_1: val: 11 crystals, not 12" in text
    assert "--config.data.same_contents=false" in text
    config.data.same_contents = False
    with caplog.at_level(logging.WARNING):
        build(config, resume_dir=run)
    assert "val: 11 crystals, not 12" in caplog.text


def test_a_run_without_digest_gets_a_note(changing, caplog):
    _, run, _ = changing
    path = run / "checkpoints" / "step_1" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    digests = meta.pop("data")
    path.write_text(json.dumps(meta))
    with caplog.at_level(logging.INFO):
        check_resumed_data({"data": digests}, run, same_contents=True)
    assert "no digest of its data" in caplog.text


# --- models that can never sample -----------------------------------------------------------------


def test_diffusion_on_a_vae_that_is_given_types_needs_the_composition(tiny_data, csp_run, caplog):
    free = build(ldm_config(tiny_data, csp_run))
    with pytest.raises(ConfigError, match=r"condition_type=composition:composition"):
        check_can_sample(free.meta, resumed=False)
    check_can_sample(free.meta, resumed=True)
    assert "can never sample" in caplog.text
    composition = {"condition_module.condition_type": "composition:composition"}
    asked = build(ldm_config(tiny_data, csp_run, ldm_module=composition))
    check_can_sample(asked.meta, resumed=False)
    assert asked.examples == {"composition": "Li1F1"}
