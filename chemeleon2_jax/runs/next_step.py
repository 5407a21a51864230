"""The command after a run, which works as it stands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.runs.config import load_config

_COMPOSITION = "ldm_module.condition_module.condition_type=composition:composition"


def next_step(
    config: ConfigDict, run_dir: Path, *, config_file: Path, examples: Mapping[str, str]
) -> str:
    """Return a line with the command that a run's result is for.

    Args:
        config: of the run.
        run_dir: its folder.
        config_file: of the run; those of the other stages lie beside it.
        examples: name -> value of a training crystal for each condition of a diffusion model.
    """
    if config.task_name == "train_vae":
        return f"Next, diffusion on its latents: {_train_ldm(config, run_dir, config_file)}"
    if config.task_name == "train_predictor":
        script = config_file.parent.parent / "launch" / "prediction.py"
        return f"Next, its errors: {shlex.join(['python', str(script), f'--model={run_dir}'])}"
    folder = "outputs/first" if config.task_name == "train_ldm" else "outputs/rl"
    command = ["python", "-m", "chemeleon2_jax.sample", f"--model={run_dir}", "--num_samples=100"]
    command += [f"--condition={name}={value}" for name, value in examples.items()]
    return f"Next, sampling: {shlex.join([*command, f'--output_dir={folder}'])}"


def _train_ldm(config: ConfigDict, run_dir: Path, config_file: Path) -> str:
    gives_types = not config.vae_module.atom_type_predict
    spec, has_composition = _ldm_spec(
        config_file.with_name("train_ldm.py"), config.experiment, gives_types=gives_types
    )
    values = {"ldm_module.vae_ckpt_path": run_dir}
    if config.data.data_dir:  # the default, too: the command says what it trains on
        values["data.data_dir"] = config.data.data_dir
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    if gives_types and not has_composition:
        flags.append(f"--config.{_COMPOSITION}")
    return shlex.join(["python", "-m", "chemeleon2_jax.train", f"--config={spec}", *flags])


def _ldm_spec(config_file: Path, experiment: str, *, gives_types: bool) -> tuple[str, bool]:
    """Return the config of the diffusion model for an experiment's VAE, and whether it has the
    composition as a condition, which a VAE for structure prediction needs.
    """
    family, slash, _ = experiment.rpartition("/")
    names = ("ldm_csp", "ldm_composition") if gives_types else ()
    for name in (*names, "ldm_null", "ldm_flow") if slash else ():
        spec = f"{config_file}:{family}/{name}"
        try:
            load_config(spec)
        except ConfigError:  # this family has no such experiment
            continue
        return spec, name in names
    return str(config_file), False
