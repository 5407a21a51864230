"""The command that a run ends with works as it stands."""

import json
import re
import shlex
from pathlib import Path

import pytest

from chemeleon2_jax import train
from chemeleon2_jax.runs.config import load_config
from chemeleon2_jax.runs.next_step import next_step
from chemeleon2_jax.stages import build
from chemeleon2_jax.stages.start_data import check_can_sample
from tests.tiny import (
    ROOT,
    fit_quickly,
    ldm_config,
    make_config,
    run_module,
)


@pytest.fixture(autouse=True)
def _quickly(quick_compilation):
    pass


def command_in(text):
    """The module of the command, and its arguments."""
    line = re.search(r"^Next, [^:]+: (python -m chemeleon2_jax\..*)$", text, re.MULTILINE)
    assert line, text
    _, _, module, *arguments = shlex.split(line[1])
    return module.removeprefix("chemeleon2_jax."), arguments


def plan_of(arguments):
    """What the train command makes of arguments, without a process."""
    values = dict(argument.removeprefix("--config").split("=", 1) for argument in arguments)
    spec = values.pop("")
    overrides = {key.removeprefix("."): value for key, value in values.items()}
    return train.make_plan(make_config(spec, overrides), overrides)


def test_after_a_vae(tiny_vae, tiny_data):
    module, arguments = command_in(tiny_vae.output)
    done = run_module(module, *arguments, "--print_config")
    assert done.code == 0, done.output
    config = json.loads(done.output[done.output.index("{\n") :])
    assert config["experiment"] == "tiny/ldm_null"
    assert config["data"]["data_dir"] == str(tiny_data)
    assert config["ldm_module"]["vae_ckpt_path"] == str(tiny_vae.path)


def test_after_a_diffusion_model(tiny_ldm, tmp_path):
    module, arguments = command_in(tiny_ldm.output)
    assert module == "sample"
    output = f"--output_dir={tmp_path / 'output'}"
    done = run_module(module, *arguments, "--num_samples=12", "--seed=5", "--steps=6", output)
    assert done.code == 0, done.output


@pytest.mark.parametrize("experiment", ["tiny/vae_csp", "fast/vae_csp", "mp_20/vae_csp", ""])
def test_after_a_vae_that_is_given_the_types(experiment, csp_run, tiny_data):
    spec = f"{ROOT}/configs/train_vae.py"
    config = load_config(f"{spec}:{experiment}")
    config.vae_module.atom_type_predict = False
    config.data.data_dir = str(tiny_data)
    text = next_step(config, csp_run, config_file=Path(spec), examples={})
    module, arguments = command_in(text)
    assert module == "train"
    plan = plan_of(arguments)
    assert plan.config.data.data_dir == str(tiny_data)
    kinds = plan.config.ldm_module.condition_module.condition_type
    assert kinds == "composition:composition"


def test_after_a_conditional_model(csp_run, tiny_data, tmp_path):
    types = {"condition_module.condition_type": "composition:composition"}
    config = ldm_config(tiny_data, csp_run, ldm_module=types)
    stage = build(config)
    check_can_sample(stage.meta, resumed=False)
    run = fit_quickly(config, tmp_path / "a run", steps=1)
    text = next_step(config, run, config_file=Path("configs/train_ldm.py"), examples=stage.examples)
    module, arguments = command_in(text)
    assert "--condition=composition=Li1F1" in arguments
    done = run_module(
        module, *arguments, "--num_samples=4", "--steps=2", f"--output_dir={tmp_path / 'output'}"
    )
    # A model of one step may build no cell; nothing else is wrong.
    assert done.code == 0 or "none of the crystals could be built" in done.output, done.output
    report = json.loads((tmp_path / "output" / "run.json").read_text())
    assert report["hits"]["composition"] == {"asked": 4, "hits": report["num_built"]}


def test_after_a_predictor():
    config = load_config(f"{ROOT}/configs/train_predictor.py")
    text = next_step(config, Path("logs/p"), config_file=Path("configs/x.py"), examples={})
    assert text == "Next, its errors: python launch/prediction.py --model=logs/p"
