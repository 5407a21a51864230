"""Training and validation crystals of a stage, and their rows on a mesh."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from chemeleon2_jax.common import hosts
from chemeleon2_jax.common.console import ON_CONSOLE
from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.data.datasets import NUM_LISTED, Split, load_split, size_table
from chemeleon2_jax.data.digest import digest_crystals
from chemeleon2_jax.data.loader import ConditionFn, Loader, in_order
from chemeleon2_jax.rows.layout import Layout
from chemeleon2_jax.rows.packing import Assignment
from chemeleon2_jax.rows.rows import Rows
from chemeleon2_jax.runs.config import rename_columns, split_names, split_shares
from chemeleon2_jax.training.parallel import make_mesh, shard_batch

_LAYOUTS = ("packed", "padded")


@dataclass(frozen=True)
class StageData:
    """Training and validation crystals, and their rows on a mesh.

    Attributes:
        train, val: crystals.
        layout: of training batches.
        val_layout: of validation batches, all of one shape.
        batch_size: crystals in a batch.
        mesh: devices.
        train_features, val_features: name -> (A, width), features of all atoms beside the crystals.
        condition_fn: crystals -> inputs of a model's conditions, name -> (G, width); None for a
            model without conditions.
    """

    train: Crystals
    val: Crystals
    layout: Layout
    val_layout: Layout
    batch_size: int
    mesh: Mesh
    train_features: Mapping[str, np.ndarray] = field(default_factory=dict)
    val_features: Mapping[str, np.ndarray] = field(default_factory=dict)
    condition_fn: ConditionFn | None = None

    def loader(self, seed: int) -> Loader:
        """Return the training batches."""
        return Loader(
            self.train, self.batch_size, self.layout, seed, self.train_features, self.condition_fn
        )

    def val_batches(self) -> Iterator[tuple[Rows, Assignment, np.ndarray]]:
        """Yield (rows on the devices, assignment, indices) over the validation set, in order."""
        batches = in_order(
            self.val,
            self.val_layout,
            self.batch_size,
            atom_features=self.val_features,
            condition_fn=self.condition_fn,
        )
        for rows, assignment, indices in batches:
            yield shard_batch(rows, self.mesh), assignment, indices

    def train_batches(self) -> Iterator[tuple[Rows, Assignment, np.ndarray]]:
        """Yield likewise over the training set, in order, without conditions."""
        layout = _layout_in_order(
            self.train, batch_size=self.batch_size, like=self.layout, mesh=self.mesh
        )
        batches = in_order(self.train, layout, self.batch_size, atom_features=self.train_features)
        for rows, assignment, indices in batches:
            yield shard_batch(rows, self.mesh), assignment, indices

    @property
    def size_table(self) -> tuple[int, ...]:
        """(N + 1,) training crystals by number of atoms."""
        return tuple(int(n) for n in size_table(self.train))

    @property
    def digest(self) -> dict[str, Any]:
        """Digests of the crystals, for the meta of a checkpoint."""
        return digest_splits(self.train, self.val)


def load_data(
    config: ConfigDict, *, edges: bool, interleaved: bool = False, targets: Iterable[str] = ()
) -> StageData:
    """Load the training and validation sets that `config.data` names and plan their rows.

    Args:
        config: of the run.
        edges: whether the model needs pairs of atoms.
        interleaved: whether the model's variance depends on the padding: then every row is padded
            to the largest training crystal, as in sampling.
        targets: properties to load, beside those of `data.target_condition`.

    Raises:
        ConfigError: a layout that does not exist, or rows too small for the crystals.
        DatasetError: no usable data.
    """
    train, val = load_splits(config, targets)
    mesh = make_mesh(config.trainer.num_devices)
    largest = int(max(train.num_atoms.max(), val.num_atoms.max()))
    packing, batch_size = config.packing, config.data.batch_size
    if packing.layout not in _LAYOUTS:
        raise ConfigError(f"packing.layout is {packing.layout!r}; it is {' or '.join(_LAYOUTS)}")
    if interleaved and largest > train.num_atoms.max():
        raise ConfigError(
            f"the interleaved variance is defined for up to {train.num_atoms.max()} atoms, the "
            f"largest training crystal, but the validation set has {largest}; set data.max_atoms"
        )
    if packing.row_tokens and packing.row_tokens < largest:
        raise ConfigError(
            f"packing.row_tokens is {packing.row_tokens}, but the largest crystal has {largest} "
            "atoms"
        )
    layout = Layout.plan(
        train.num_atoms,
        batch_size,
        num_devices=mesh.devices.size,
        row_tokens=packing.row_tokens,
        max_shapes=packing.max_shapes,
        padded_tokens=largest if interleaved or packing.layout == "padded" else 0,
        edges=edges,
    )
    val_layout = _layout_in_order(val, batch_size=batch_size, like=layout, mesh=mesh)
    return StageData(train, val, layout, val_layout, batch_size, mesh)


def digest_splits(train: Crystals, val: Crystals) -> dict[str, Any]:
    """Return the digests of a training and a validation set, for the meta of a checkpoint."""
    return {"train": digest_crystals(train), "val": digest_crystals(val)}


def load_splits(config: ConfigDict, targets: Iterable[str] = ()) -> tuple[Crystals, Crystals]:
    """Load the training and validation crystals that `config.data` names.

    Args:
        config: of the run.
        targets: properties to load, beside those of `data.target_condition`.

    Raises:
        DatasetError: no usable data.
    """
    data = config.data
    options: dict[str, Any] = {
        "data_dir": data.data_dir,
        "targets": tuple(dict.fromkeys([*split_names(data.target_condition), *targets])),
        "rename": rename_columns(data.rename),
        "max_atoms": data.max_atoms,
        "keep_inconsistent": data.keep_inconsistent,
        "shares": split_shares(data.split),
        "num_workers": data.num_workers or None,
    }
    train, val = (
        _agree(load_split(data.name, split, **options), split) for split in ("train", "val")
    )
    for split in (train, val):
        _log_skipped(split)
    return train.crystals, val.crystals


def _agree(split: Split, name: str) -> Split:
    """Leave out the rows that any process has skipped, as one that took too long; check that all
    have the same crystals.
    """
    if hosts.count() == 1:
        return split
    total = len(split.crystals) + len(split.skipped)
    hosts.check_same({f"number of rows in the {name} set ({split.source})": total})
    skipped = {row.row: row for rows in reversed(hosts.gather(split.skipped)) for row in rows}
    own_rows = np.setdiff1d(np.arange(1, total + 1), [row.row for row in split.skipped])
    kept = np.flatnonzero(~np.isin(own_rows, list(skipped)))
    crystals = split.crystals.take(kept)
    contents = digest_crystals(crystals)
    hosts.check_same(
        {f"{what} of the {name} set ({split.source})": contents[what] for what in contents}
    )
    return replace(split, crystals=crystals, skipped=tuple(skipped[row] for row in sorted(skipped)))


def _log_skipped(split: Split) -> None:
    """List the rows that the report of `load_split` only counts; on the console, say where."""
    rest = split.skipped[NUM_LISTED:]
    if not rest:
        return
    lines = "\n".join(f"  {row.describe()}" for row in rest)
    logging.info("%s: the other skipped rows\n%s", split.source, lines, extra={ON_CONSOLE: ""})
    logging.info("%s: all skipped rows are listed in the run's train.log", split.source)


def _layout_in_order(crystals: Crystals, *, batch_size: int, like: Layout, mesh: Mesh) -> Layout:
    """Return a layout with one shape for all batches of `in_order`."""
    starts = range(0, len(crystals), batch_size)
    sizes = [crystals.num_atoms[i : i + batch_size] for i in starts]
    return Layout.for_batches(sizes, like=like, num_devices=mesh.devices.size)
