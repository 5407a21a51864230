"""What stages share: data and row layout from a config, jitted evaluation over a mesh, sums of loss
terms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from chemeleon2_jax.common.console import ON_CONSOLE
from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.data.augment import Augmentation
from chemeleon2_jax.data.datasets import NUM_LISTED, Split, load_split, size_table
from chemeleon2_jax.data.loader import ConditionFn, Loader, in_order
from chemeleon2_jax.models.losses import Terms
from chemeleon2_jax.pretrained.loading import open_model
from chemeleon2_jax.rows.layout import Layout
from chemeleon2_jax.runs.config import rename_columns, split_names
from chemeleon2_jax.torch_format.model import OpenModel
from chemeleon2_jax.training.checkpoint_reader import DIRECTORY, complete_steps
from chemeleon2_jax.training.config import PRECISIONS
from chemeleon2_jax.training.parallel import make_mesh, replicated, shard_batch
from chemeleon2_jax.workers import WorkerPool


@dataclass(frozen=True)
class StageData:
    """Training and validation crystals, and how they become rows on a mesh.

    `train_features` and `val_features` hold what is known of atoms beside the crystals, name -> (A,
    width); `condition_fn` what crystals are as the conditions of a model.
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
        """Training batches."""
        return Loader(
            self.train, self.batch_size, self.layout, seed, self.train_features, self.condition_fn
        )

    def val_batches(self) -> Iterable[tuple[Any, Any, np.ndarray]]:
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

    def train_batches(self) -> Iterable[tuple[Any, Any, np.ndarray]]:
        """Yield as `val_batches` over the whole training set, in order, all of one shape."""
        layout = _layout_in_order(self.train, self.batch_size, self.layout, self.mesh)
        for rows, assignment, indices in in_order(self.train, layout, self.batch_size):
            yield shard_batch(rows, self.mesh), assignment, indices

    @property
    def size_table(self) -> tuple[int, ...]:
        """Training crystals by number of atoms."""
        return tuple(int(n) for n in size_table(self.train))


def load_data(
    config: ConfigDict, *, edges: bool, interleaved: bool = False, targets: Iterable[str] = ()
) -> StageData:
    """Load the training and validation sets that `config.data` names and plan their rows.

    Args:
        config: of the run.
        edges: whether the model wants pairs of atoms.
        interleaved: whether the model's variance depends on the padding: then every row is padded
            to the largest training crystal, as in sampling.
        targets: properties to load, beside those of `data.target_condition`.
    """
    data = config.data
    train, val = load_splits(config, targets)
    mesh = make_mesh(config.trainer.num_devices)
    num_devices = mesh.devices.size
    largest = int(max(train.num_atoms.max(), val.num_atoms.max()))
    if config.packing.layout not in ("packed", "padded"):
        raise ConfigError(f"packing.layout is {config.packing.layout!r}; it is packed or padded")
    if interleaved and largest > train.num_atoms.max():
        raise ConfigError(
            f"the interleaved variance is defined for up to {train.num_atoms.max()} atoms, as the "
            f"training set has them, but the validation set has {largest}; set data.max_atoms"
        )
    row_tokens = config.packing.row_tokens
    if row_tokens and row_tokens < largest:
        raise ConfigError(
            f"packing.row_tokens is {row_tokens}, but the largest crystal has {largest} atoms"
        )
    layout = Layout.plan(
        train.num_atoms,
        data.batch_size,
        num_devices=num_devices,
        row_tokens=row_tokens,
        max_shapes=config.packing.max_shapes,
        padded_tokens=largest if interleaved or config.packing.layout == "padded" else 0,
        edges=edges,
    )
    val_layout = _layout_in_order(val, data.batch_size, layout, mesh)
    return StageData(train, val, layout, val_layout, data.batch_size, mesh)


def load_splits(config: ConfigDict, targets: Iterable[str] = ()) -> tuple[Crystals, Crystals]:
    """Load the training and validation crystals that `config.data` names.

    Args:
        config: of the run.
        targets: properties to load, beside those of `data.target_condition`.
    """
    data = config.data
    options: dict[str, Any] = {
        "data_dir": data.data_dir,
        "targets": tuple(dict.fromkeys([*split_names(data.target_condition), *targets])),
        "rename": rename_columns(data.rename),
        "max_atoms": data.max_atoms,
        "num_workers": data.num_workers or None,
    }
    splits = [load_split(data.name, part, **options) for part in ("train", "val")]
    for split in splits:
        _log_skipped(split)
    return splits[0].crystals, splits[1].crystals


def _log_skipped(split: Split) -> None:
    """List the rows that the report of `load_split` only counts; on the console, say where."""
    rest = split.skipped[NUM_LISTED:]
    if not rest:
        return
    lines = "\n".join(f"  {row.describe()}" for row in rest)
    logging.info("%s: the other skipped rows\n%s", split.source, lines, extra={ON_CONSOLE: ""})
    logging.info("%s: all skipped rows are listed in the run's train.log", split.source)


def _layout_in_order(crystals: Crystals, batch_size: int, like: Layout, mesh: Mesh) -> Layout:
    """One shape for all batches of `in_order`."""
    starts = range(0, len(crystals), batch_size)
    sizes = [crystals.num_atoms[i : i + batch_size] for i in starts]
    return Layout.for_batches(sizes, like=like, num_devices=mesh.devices.size)


def compute_dtype(config: ConfigDict) -> Any:
    """The dtype that `trainer.precision` names.

    Raises:
        ConfigError: it names none.
    """
    precision = config.trainer.precision
    if precision not in PRECISIONS:
        raise ConfigError(f"trainer.precision is {precision!r}; it is {' or '.join(PRECISIONS)}")
    return jnp.dtype(PRECISIONS[precision])


def augmentation(options: ConfigDict) -> Augmentation:
    """The `augmentation` block of a stage."""
    return Augmentation(options.rotate, options.translate, options.per_crystal)


def evaluator(fn: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Jit a function of sharded rows; what it returns is whole on every device, so that each host
    can read it.
    """
    return jax.jit(fn, out_shardings=replicated(mesh))


def read_statistics(
    text: str, names: Iterable[str], train: Crystals, *, key: str
) -> dict[str, tuple[float, float]]:
    """Return name -> mean and standard deviation: those given, else those of the training set.

    Args:
        text: "name:mean:std", comma-separated, in the unit of the property.
        names: of properties.
        train: crystals that have them.
        key: of `text` in the config, for messages.

    Raises:
        ConfigError: not of that form, another property, or one that is constant.
    """
    given, names = {}, tuple(names)
    for part in split_names(text):
        try:
            name, *moments = part.split(":")
            mean, std = map(float, moments)
            if name.strip() in given:
                raise ConfigError(f"{key} names {name.strip()!r} twice")
            given[name.strip()] = (mean, std)
        except ConfigError:
            raise
        except ValueError:
            raise ConfigError(
                f"{key} has the part {part!r}; it is name:mean:std, comma-separated, as in "
                "dft_band_gap:0.797:1.408"
            ) from None
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ConfigError(
            f"{key} names {', '.join(unknown)}; there are {', '.join(names) or 'none'}"
        )
    found = {}
    for name in names:
        values = train.targets[name].astype(np.float64)
        mean, std = given.get(name, (float(values.mean()), float(values.std())))
        if not np.isfinite([mean, std]).all() or std <= 0:
            raise ConfigError(
                f"{name!r} has mean {mean:g} and standard deviation {std:g}: there is nothing to "
                "learn"
            )
        found[name] = (mean, std)
    return found


def resumed_from(resume_dir: Path | None) -> OpenModel | None:
    """Open the run to resume; None if there is none, or it has no whole checkpoint."""
    if resume_dir is None or not complete_steps(resume_dir / DIRECTORY):
        return None
    return open_model(resume_dir)


def from_first_process(values: dict[str, float]) -> dict[str, float]:
    """The first process's values, on all of them: time limits strike where they like."""
    if jax.process_count() == 1:
        return values
    numbers = multihost_utils.broadcast_one_to_all(np.array(list(values.values()), np.float64))
    return dict(zip(values, map(float, numbers), strict=True))


def from_all_processes(values: dict[str, float]) -> dict[str, float]:
    """The largest value that a process has, on all of them."""
    if jax.process_count() == 1:
        return values
    numbers = multihost_utils.process_allgather(np.array(list(values.values()), np.float64))
    return dict(zip(values, map(float, np.max(numbers, axis=0)), strict=True))


def sum_terms(parts: Iterable[Terms]) -> dict[str, tuple[float, float]]:
    """Add up (sum, weight) terms of batches, in float64 on the host."""
    totals: dict[str, np.ndarray] = {}
    # All at once: the device computes the next batch while the last is on its way.
    for part in jax.device_get(list(parts)):
        for name, pair in part.items():
            totals[name] = totals.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
    return {name: (float(total), float(weight)) for name, (total, weight) in totals.items()}


def make_pool(config: ConfigDict) -> WorkerPool:
    """Worker processes for host-side work, started when first used."""
    return WorkerPool(config.data.num_workers or None)
