"""What a user of Chemeleon2 types, and its name here: keys, values and flags.

Chemeleon2 is configured by Hydra (`experiment=mp_20/ldm_null trainer.max_epochs=5`); here a config
is a Python file and each value a flag `--config.<key>=<value>`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.models.sizes import NAMED_SIZES
from chemeleon2_jax.runs.command_line import Alias
from chemeleon2_jax.runs.config import flatten, load_config

TASKS = ("train_vae", "train_ldm", "train_rl", "train_predictor")

# Key -> value there -> value here.
_VALUES: dict[str, dict[str, str]] = {
    "ldm_module.denoiser.size": {f"dit_{size.lower()}": size for size in NAMED_SIZES},
    "trainer.precision": {
        "bf16-mixed": "bf16",
        "bf16-true": "bf16",
        "32": "f32",
        "32-true": "f32",
    },
}
_SIZE = "--config.ldm_module.denoiser.size=L (or S, B, XL)"
# Key there, or its last parts -> what to write here.
_KEYS = {
    "denoiser": _SIZE,
    "ldm_module.denoiser": _SIZE,
    "size": _SIZE,
    "min_epochs": "leave it out: early stopping is --config.callbacks.early_stopping.patience, in "
    "validations",
    "callbacks.ema": "--config.ldm_module.ema.decay=0.9999 (0 for off)",
    "callbacks.ema.decay": "--config.ldm_module.ema.decay=0.9999 (0 for off)",
    "wandb.offline": "set the variable WANDB_MODE=offline",
    "ckpt_path": "--config.resume_from=<run folder> resumes a run; a new VAE starts from weights "
    "with --config.vae_module.vae_ckpt_path, a diffusion model with "
    "--config.ldm_module.ldm_ckpt_path",
    "accelerator": "JAX chooses the device; the variable JAX_PLATFORMS=cpu names one",
    "devices": "--config.trainer.num_devices (0 for all)",
    "strategy": "leave it out: a run uses all devices of its machine",
    "logger": "--config.logger.wandb.project=<project>; TensorBoard is always on",
    "data": "--config.data.name=<data set> or --config.data.data_dir=<folder>",
    "data_dir": "--config.data.data_dir=<folder>",
}
_ARGUMENT = re.compile(r"(?:--?)?[+~]{0,2}([A-Za-z]\w*(?:[./]\w+)*)(?:=(.*))?", re.DOTALL)

SAMPLE_FLAGS = {
    "ldm_ckpt_path": Alias("model"),
    "vae_ckpt_path": Alias("vae"),
    "batch_size": Alias("chunk_size"),
    "sampling_steps": Alias("steps"),
    "num_atom_distribution": Alias("size_table"),
    "device": Alias(advice="JAX chooses the device; the variable JAX_PLATFORMS=cpu names one"),
}
_ENERGIES = (
    "evaluate computes no energies; from Python, see chemeleon2_jax.energy in the section Energies "
    "of the README"
)
EVALUATE_FLAGS = {
    "structure_path": Alias("structures"),
    "reference_dataset": Alias("reference"),
    "output_file": Alias("output_dir", convert=lambda file: str(Path(file).with_suffix(""))),
    "model_path": Alias(advice=f"--feature_model is the VAE of the diversities; {_ENERGIES}"),
    "phase_diagram": Alias(advice=_ENERGIES),
    "stability_threshold": Alias(advice=_ENERGIES),
}


def take_values(config: ConfigDict) -> list[str]:
    """Replace values of Chemeleon2 by those here, in place; return a line for each."""
    lines = []
    for key, values in _VALUES.items():
        value = flatten(config).get(key)
        if value in values:
            config.update_from_flattened_dict({key: values[value]})
            lines.append(f"{key} = {value} is {values[value]} here")
    return lines


def advise_key(key: str) -> str:
    """Return what to write for a key of Chemeleon2 that has another name here; '' if unknown."""
    parts = re.split(r"[./]", key)
    tails = [".".join(parts[start:]) for start in range(len(parts))]
    return next((_KEYS[tail] for tail in tails if tail in _KEYS), "")


def explain_argument(argument: str, value: str, *, spec: str) -> str:
    """Return what to type for an argument that is no flag of `train`; '' for nothing better.

    Args:
        argument: as it was typed, for example "experiment=mp_20/ldm_null" or "--trainer.max_steps".
        value: next argument, which is the value of one without "=".
        spec: of the config file; '' without one.
    """
    match = _ARGUMENT.fullmatch(argument)
    if match is None:
        return ""
    key, text = match[1].replace("/", "."), match[2] if match[2] is not None else value
    if key == "cfg":
        return "--print_config prints the resolved config"
    if key == "experiment":
        return _experiment(text, spec)
    flat = _keys_of(spec)
    if key in flat:
        return f"--config.{key}={text or '<value>'}"
    same = [known for known in flat if known.endswith(f".{key}")]
    if key in ("size", "precision") or (advise_key(key) and not same):
        return _value_advice(key, text) or advise_key(key)
    if len(same) == 1:
        return f"--config.{same[0]}={text or '<value>'}"
    return ""


def _value_advice(key: str, text: str) -> str:
    leaf = {"denoiser": "size"}.get(key.rpartition(".")[2], key.rpartition(".")[2])
    for known, values in _VALUES.items():
        if known.endswith(f".{leaf}") and text in values:
            return f"--config.{known}={values[text]}"
    return ""


def _experiment(name: str, spec: str) -> str:
    folder = Path(spec.partition(":")[0]).parent if spec else Path("configs")
    for task in TASKS:
        candidate = f"{folder / task}.py:{name}"
        try:
            load_config(candidate)
        except ConfigError:
            continue
        return f"--config={candidate}"
    return f"--config={folder}/train_<stage>.py:{name or '<experiment>'}"


def _keys_of(spec: str) -> Mapping[str, Any]:
    return flatten(load_config(spec)) if spec else {}
