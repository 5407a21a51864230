"""Configs of runs: loading, and conversion for stages and the training core.

The values of a `ConfigDict` are numbers, bools and strings. Absent is '' or 0, several names are
one comma-separated string. JAX is not imported, so that `--print_config` and errors take no time.
"""

import importlib.util
import json
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.common.paths import expand_path
from chemeleon2_jax.training.config import (
    EarlyStoppingConfig,
    FitConfig,
    OptimizerConfig,
    SchedulerConfig,
    WandbConfig,
)

_HUB_KEY = re.compile(r"\$\{hub:([^}]+)\}")


def load_config(spec: str) -> ConfigDict:
    """Load a config file.

    Args:
        spec: path of a Python file with `get_config(experiment)`, or '<path>:<experiment>'.

    Raises:
        ConfigError: the file or the experiment does not exist, or the file holds no config.
    """
    name, _, experiment = spec.partition(":")
    path = expand_path(name)
    if not path.is_file():
        raise ConfigError(f"there is no config file {name!r} (looked in {Path.cwd()})")
    add_config_root(path)
    module_spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    if module_spec is None or module_spec.loader is None:
        raise ConfigError(f"{name} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{name} has no function get_config(experiment)")
    try:
        config = module.get_config(experiment)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error
    config.lock()
    return config


def add_config_root(path: Path) -> None:
    """Make the folder above `configs/` importable, since config files import shared blocks."""
    root = str(path.resolve().parent.parent)
    if root not in sys.path:
        sys.path.insert(0, root)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested blocks into {dotted key: value}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping | ConfigDict):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def to_json(config: ConfigDict) -> str:
    """Return the config as indented JSON."""
    return json.dumps(config.to_dict(), indent=2)


def module_of(config: ConfigDict) -> ConfigDict:
    """Return the stage's own block: `vae_module` of train_vae, `ldm_module` of train_ldm."""
    return config[f"{config.task_name.removeprefix('train_')}_module"]


def start_folder(config: ConfigDict) -> str:
    """Return the folder of the model that a run starts from; '' for none, and for a published key
    or a file.
    """
    module = module_of(config)
    name = next((module[k] for k in ("ldm_ckpt_path", "vae_ckpt_path") if module.get(k)), "")
    return name if name and (Path(name).is_dir() or Path(name).is_symlink()) else ""


def fit_config(config: ConfigDict) -> FitConfig:
    """Return the settings of the training core.

    Raises:
        ConfigError: a value is out of range.
    """
    module, callbacks, wandb = module_of(config), config.callbacks, config.logger.wandb
    try:
        return FitConfig(
            **config.trainer.to_dict(),
            seed=config.seed,
            ema_decay=module.ema.decay if "ema" in module else 0.0,
            keep_best=callbacks.model_checkpoint.save_top_k,
            optimizer=OptimizerConfig(**module.optimizer.to_dict()),
            scheduler=SchedulerConfig(**module.scheduler.to_dict()),
            early_stopping=EarlyStoppingConfig(**callbacks.early_stopping.to_dict()),
            wandb=WandbConfig(
                project=wandb.project,
                name=wandb.name,
                group=wandb.group or f"{config.task_name}/{dataset_label(config)}",
                tags=split_names(wandb.tags),
            ),
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def dataset_label(config: ConfigDict) -> str:
    """Return a short name of the data set: its folder's, or `data.name` without a folder."""
    folder = str(config.data.data_dir)
    return Path(folder).resolve().name if folder else str(config.data.name)


def describe_data(block: Mapping[str, Any]) -> str:
    """Return the data set of a block `data` as one reads it: its folder, or its name."""
    return str(block.get("data_dir") or block.get("name") or "no data")


def split_names(text: str) -> tuple[str, ...]:
    """Split a comma-separated value."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def rename_columns(text: str, *, key: str = "data.rename") -> dict[str, str]:
    """Read `data.rename`: comma-separated 'column in the file:name here'.

    Args:
        text: the value.
        key: of the value, for messages.

    Raises:
        ConfigError: a part has another form.
    """
    columns = {}
    for part in split_names(text):
        column, colon, name = (piece.strip() for piece in part.partition(":"))
        if not (column and colon and name):
            raise ConfigError(
                f"{key} has the part {part!r}; it is 'column in the file:name here', "
                "comma-separated, as in band_gap:dft_band_gap"
            )
        columns[column] = name
    return columns


def is_path(key: str) -> bool:
    """Return whether the value of a dotted key is a path, or may be one."""
    return key in ("resume_from", "paths.log_dir", "data.data_dir") or key.endswith(
        ("ckpt_path", ".model_path", ".hull")
    )


def expand_value(key: str, value: Any) -> Any:
    """Return a value with `~` and variables replaced if it is a path, see `expand_path`.

    Raises:
        ConfigError: the path is a URL, or has an unknown variable or user.
    """
    if not is_path(key) or not isinstance(value, str) or not re.search(r"[~$]|://", value):
        return value
    if _HUB_KEY.fullmatch(value):
        return value
    try:
        return str(expand_path(value))
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error


def expand_paths(config: ConfigDict) -> None:
    """Replace `~` and variables in all paths, in place.

    Raises:
        ConfigError: see `expand_value`.
    """
    for key, value in flatten(config).items():
        expanded = expand_value(key, value)
        if expanded != value:
            config.update_from_flattened_dict({key: expanded})


def split_shares(text: str) -> tuple[float, ...]:
    """Read `data.split`: the shares of training, validation and test crystals; () for ''.

    Raises:
        ConfigError: not three shares with the sum 1, of which the first two are positive.
    """
    try:
        shares = tuple(float(part) for part in split_names(text))
    except ValueError:
        shares = (math.nan,)
    valid = len(shares) == 3 and min(shares[:2]) > 0 and shares[2] >= 0
    if shares and not (valid and abs(sum(shares) - 1.0) < 1e-6):
        raise ConfigError(
            f"data.split is {text!r}; it is the shares of training, validation and test crystals "
            "of one CSV file, with the sum 1, as in 0.8,0.1,0.1"
        )
    return shares


def unwrap_hub_keys(config: ConfigDict) -> None:
    """Replace every `${hub:name}`, the form in Chemeleon2's configs, by `name`, in place."""
    for key, value in flatten(config).items():
        match = _HUB_KEY.fullmatch(value) if isinstance(value, str) else None
        if match:
            config.update_from_flattened_dict({key: match[1]})
