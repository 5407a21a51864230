"""Writing a model in either form, whole or not at all."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path

from chemeleon2_jax.common.atomic_files import remove_tree
from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.common.paths import check_checkpoint_path
from chemeleon2_jax.models.abstract import count_parameters
from chemeleon2_jax.models.lora import merge
from chemeleon2_jax.torch_format.model import Converted, OpenModel, Report
from chemeleon2_jax.torch_format.to_torch import torch_content
from chemeleon2_jax.torch_format.torch_writer import write_torch_file
from chemeleon2_jax.training.checkpoint_writer import write_checkpoint
from chemeleon2_jax.training.plain_trees import flat_names

_KEPT = ("params", "ema", "vae")
"""Items of a model; a run's checkpoint has more, to resume from."""


def write_orbax(model: OpenModel, folder: Path, *, merge_lora: bool = False) -> Report:
    """Write or replace a checkpoint folder of a model, without the state of its training.

    Raises:
        CheckpointError: it cannot be written, or would replace something other than a checkpoint.
    """
    source = _merged(model) if merge_lora else model
    if folder.is_file() or (
        folder.is_dir() and any(folder.iterdir()) and not (folder / "meta").is_dir()
    ):
        raise CheckpointError(f"{folder} is no checkpoint folder: it is not replaced")
    trees = {name: source.restore(name) for name in source.items if name in _KEPT}
    folder = folder.absolute()
    check_checkpoint_path(folder, error=CheckpointError)
    # Holds the new checkpoint until it is whole, then the old one.
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.mkdir(parents=True)
        new = temporary / "new"
        write_checkpoint(new, items=trees, meta=source.meta.to_json(), target=folder)
        if folder.is_dir():
            folder.rename(temporary / "old")
        new.rename(folder)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error}") from error
    finally:
        remove_tree(temporary)
    if isinstance(model, Converted):
        return model.report
    report = Report(model.meta.stage)
    report.num_tensors = sum(len(flat_names(tree)) for tree in trees.values())
    report.num_parameters = sum(count_parameters(tree) for tree in trees.values())
    return report


def write_torch(model: OpenModel, path: Path, *, merge_lora: bool = False) -> Report:
    """Write a checkpoint of the PyTorch original; see `to_torch`.

    Raises:
        CheckpointError: it cannot be written, or the original has no such model.
    """
    content, report = torch_content(_merged(model) if merge_lora else model)
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        write_torch_file(path, content)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from error
    return report


def _merged(model: OpenModel) -> Converted:
    """The model with its adapters merged into the weights."""
    ldm = model.meta.ldm
    if ldm is None or ldm.dit.lora is None:
        raise CheckpointError(
            f"{model.path} has no LoRA adapters to merge; leave --merge_lora away"
        )
    trees = {name: model.restore(name) for name in model.items if name in _KEPT}
    trees = {n: tree if n == "vae" else merge(tree, ldm.dit.lora) for n, tree in trees.items()}
    meta = replace(model.meta, ldm=replace(ldm, dit=replace(ldm.dit, lora=None)))
    return Converted(model.path, meta, trees, Report(model.meta.stage), model.step)
