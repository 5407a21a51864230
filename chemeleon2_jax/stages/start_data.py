"""Data of the model that a run starts from: the default of the run's own data; and the check of a
resumed run's data.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from chemeleon2_jax.common.errors import CheckpointError, ConfigError, DatasetError
from chemeleon2_jax.data.digest import describe_difference
from chemeleon2_jax.models.condition_kinds import CompositionCondition
from chemeleon2_jax.pretrained.loading import open_model
from chemeleon2_jax.runs.config import describe_data, expand_value, rename_columns, start_folder
from chemeleon2_jax.training.checkpoint_reader import DIRECTORY, complete_steps, open_folder

_SOURCE = ("name", "data_dir")
# What a run decides on its own, whatever its data.
_OWN = ("batch_size", "target_condition", "num_workers", "inherit", "same_contents")


def follow_start(config: ConfigDict, overrides: Container[str]) -> list[str]:
    """Give a new run the data of the model that it starts from, in place.

    The data of a run or checkpoint of this package are known; published models and PyTorch files do
    not state theirs. Data that a flag names stay; so do those of an experiment with
    `data.inherit = False`.

    Args:
        config: of the run.
        overrides: dotted keys that the command line sets.

    Returns:
        A line about the data, or none.

    Raises:
        CheckpointError: the model cannot be opened.
        ConfigError: its data are not on this machine.
    """
    path = start_folder(config)
    theirs = _data_of(path) if path else {}
    if not theirs:
        return []
    data, named = config.data, any(f"data.{key}" in overrides for key in _SOURCE)
    same = _same_source(theirs, data)
    if (named and not same) or not (named or data.inherit):
        if same:
            return []
        return [f"data: {describe_data(data)}; {path} was trained on {describe_data(theirs)}"]
    own = {key: value for key, value in theirs.items() if key in data and key not in _OWN}
    for key, value in own.items():
        if f"data.{key}" not in overrides:
            data[key] = value
        elif key == "rename":
            data.rename = _merge_renames(value, data.rename)
    if data.data_dir and not Path(data.data_dir).exists():
        raise ConfigError(
            f"{path} was trained on data.data_dir = {data.data_dir}, which is not here: give "
            "--config.data.data_dir=<folder> or --config.data.name=<data set>"
        )
    return [
        f"data: {describe_data(data)}, those of {path}; --config.data.data_dir or "
        "--config.data.name gives it others"
    ]


def _data_of(path: str) -> Mapping[str, Any]:
    """Return the block `data` of the run that trained a model; {} where it names no data."""
    meta = open_model(path).meta
    for config in (meta.config, meta.config_of_vae):  # RL may have had no data of its own
        block = config.get("data", {})
        if any(block.get(key) for key in _SOURCE):
            return {key: expand_value(f"data.{key}", value) for key, value in block.items()}
    return {}


def _same_source(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    folders = [str(block.get("data_dir", "")) for block in (one, other)]
    if any(folders):
        return all(folders) and len({Path(f).resolve() for f in folders}) == 1
    names = {str(block.get("name", "")).lower().replace("_", "-") for block in (one, other)}
    return len(names) == 1


def _merge_renames(theirs: str, ours: str) -> str:
    """Join two `data.rename`; the second counts where both give a name."""
    columns = {**{v: k for k, v in rename_columns(theirs).items()}}
    columns |= {v: k for k, v in rename_columns(ours).items()}
    return ",".join(f"{column}:{name}" for name, column in columns.items())


def check_resumed_data(
    meta: Mapping[str, Any], resume_dir: Path | None, *, same_contents: bool
) -> None:
    """Compare the crystals of a resumed run with those of its last checkpoint.

    Args:
        meta: of the stage, with the digests of the present crystals.
        resume_dir: run folder; None for a new run.
        same_contents: whether other contents are an error, not a warning.

    Raises:
        DatasetError: other contents, not allowed.
    """
    steps = complete_steps(resume_dir / DIRECTORY) if resume_dir else {}
    if not steps:
        return
    path = steps[max(steps)]
    saved, present = open_folder(path).meta.get("data"), meta.get("data")
    if not present:
        return
    if not saved:
        logging.info("%s has no digest of its data: they are not compared", path)
        return
    if not isinstance(saved, Mapping) or not all(
        isinstance(saved.get(s), Mapping) for s in present
    ):
        raise CheckpointError(f"{path} has a wrong entry 'data' in its meta: it is damaged")
    clauses = {split: describe_difference(saved[split], present[split]) for split in present}
    differing = "; ".join(f"{split}: {clause}" for split, clause in clauses.items() if clause)
    if not differing:
        return
    if not same_contents:
        logging.warning("the data have changed since %s: %s", path, differing)
        return
    raise DatasetError(
        f"the data have changed since {path}: {differing}. Restore them, start a new run, or go on "
        "with these by --config.data.same_contents=false"
    )


def check_can_sample(meta: Mapping[str, Any], *, resumed: bool) -> None:
    """Refuse a diffusion model that could never sample, before it is trained.

    Raises:
        ConfigError: a VAE that is given the atom types, and no composition to take them from.
    """
    dit = meta.get("dit")
    if not isinstance(dit, Mapping) or meta["vae"].get("atom_type_predict", True):
        return
    conditions = (dit.get("conditions") or {}).get("conditions", ())
    if any(condition["kind"] == CompositionCondition.kind for condition in conditions):
        return
    text = (
        "the VAE is one for structure prediction (atom_type_predict = false, as in vae_csp): it is "
        "given the atom types, and this diffusion model has no condition that holds them, so that "
        "it can never sample"
    )
    if resumed:
        logging.warning("%s", text)
        return
    raise ConfigError(
        f"{text}. Set --config.ldm_module.condition_module.condition_type=composition:composition, "
        "or train on a VAE that predicts atom types (vae_dng)"
    )
