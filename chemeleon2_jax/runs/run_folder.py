"""Run folders: making one, its `config.json`, and the config of a resumed run."""

import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from chemeleon2_jax.common.atomic_files import replacing
from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.common.json_text import parse_json
from chemeleon2_jax.common.paths import check_checkpoint_path
from chemeleon2_jax.runs.config import flatten, to_json

CONFIG_FILE = "config.json"
# Prefixes of the keys that a run keeps for life.
_IDENTITY = (
    "task_name",
    "seed",
    "data.name",
    "data.data_dir",
    "data.keep_inconsistent",
    "data.max_atoms",
    "data.rename",
    "data.split",
    "data.target_condition",
    "ldm_module.denoiser",
    "ldm_module.diffusion",
    "ldm_module.ldm_ckpt_path",
    "ldm_module.reflow",
    "ldm_module.vae_ckpt_path",
    "rl_module.conditions",
    "rl_module.ldm_ckpt_path",
    "rl_module.reward_fn",
    "rl_module.rl_configs.kl_reference",
    "rl_module.rl_configs.num_inner_batch",
    "rl_module.validation.num_samples",
    "rl_module.vae_ckpt_path",
    "vae_module.atom_type_predict",
    "vae_module.decoder",
    "vae_module.encoder",
    "vae_module.foundation_features",
    "vae_module.latent_dim",
    "vae_module.vae_ckpt_path",
)
# Values that stay zero or stay nonzero: they decide on items or weights of a checkpoint.
_SWITCHES = ("ldm_module.ema.decay", "rl_module.ema.decay", "vae_module.loss_weights.fa")

# Keys that runs of earlier versions lack, with the values that continue them bit for bit where the
# defaults of today do not.
_EARLIER = {"ldm_module.cache_posteriors": False}


def make_run_dir(
    log_dir: str, task_name: str, *, name: str = "", now: datetime | None = None
) -> Path:
    """Make `<log_dir>/<task_name>/runs/<date and time>`, with `_1`, `_2`, ... if it exists.

    Args:
        log_dir: folder of all runs.
        task_name: of the stage.
        name: of the run, before date and time.
        now: date and time.

    Raises:
        ConfigError: the folder cannot be made, or the name is no file name.
    """
    _check_run_name(name)
    runs = Path(log_dir) / task_name / "runs"
    check_checkpoint_path(runs, error=ConfigError)
    stamp = (now or datetime.now()).strftime("%Y-%m-%d_%H-%M-%S")
    stamp = f"{name}_{stamp}" if name else stamp
    try:
        runs.mkdir(parents=True, exist_ok=True)
        run_dir, number = runs / stamp, 0
        while not _make_new(run_dir):
            number += 1
            run_dir = runs / f"{stamp}_{number}"
    except OSError as error:
        raise ConfigError(f"paths.log_dir: cannot make a folder in {runs}: {error}") from error
    return run_dir


def newest_run(log_dir: str, task_name: str, name: str) -> Path | None:
    """Return the newest run folder of a name; None if there is none.

    Raises:
        ConfigError: the name is no file name, or the folder of the runs cannot be read.
    """
    _check_run_name(name)
    pattern = re.compile(rf"{re.escape(name)}_(\d{{4}}-\d\d-\d\d_\d\d-\d\d-\d\d)(?:_(\d+))?")
    runs = Path(log_dir) / task_name / "runs"
    try:
        folders = [path for path in runs.iterdir() if (path / CONFIG_FILE).is_file()]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"paths.log_dir: {runs} cannot be read: {error}") from error
    matches = [(match, path) for path in folders if (match := pattern.fullmatch(path.name))]
    ordered = sorted(matches, key=lambda pair: (pair[0][1], int(pair[0][2] or 0)))
    return ordered[-1][1] if ordered else None


def _check_run_name(name: str) -> None:
    if name and not re.fullmatch(r"[A-Za-z0-9][\w.+=-]*", name, re.ASCII):
        raise ConfigError(
            f"run_name is {name!r}; it starts with a letter or digit, and has letters, digits and "
            ". _ + = - only"
        )


def _make_new(path: Path) -> bool:
    # Without a test before it, so that two simultaneous runs get two folders.
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def remove_unused(run_dir: Path, log_name: str) -> None:
    """Remove the folder of a run that never started, if it has only a config and a log."""
    checkpoints = run_dir / "checkpoints"
    with suppress(OSError):  # a folder that stays does no harm
        if checkpoints.is_dir():
            checkpoints.rmdir()
        if {path.name for path in run_dir.iterdir()} <= {CONFIG_FILE, log_name}:
            shutil.rmtree(run_dir)


def save_config(config: ConfigDict, run_dir: Path) -> None:
    """Write `config.json` into a run's folder, atomically.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        with replacing(run_dir / CONFIG_FILE) as temporary:
            temporary.write_text(to_json(config) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write {run_dir / CONFIG_FILE}: {error}") from error


def read_config(run_dir: Path) -> dict[str, Any]:
    """Read a run's `config.json`.

    Raises:
        ConfigError: this is not a run folder, or the file is broken.
    """
    path = run_dir / CONFIG_FILE
    try:
        content = parse_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{run_dir} is not the folder of a run (it has no {CONFIG_FILE})"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} does not hold a config")
    return content


def resumed_config(
    current: ConfigDict, overrides: Mapping[str, Any], run_dir: Path
) -> tuple[ConfigDict, list[str]]:
    """Return the config of a resumed run: the saved one, changed by the present flags.

    Args:
        current: config of the command line; the result has its keys and types.
        overrides: {dotted key: value} of the present flags.
        run_dir: folder of the run.

    Returns:
        The config, with an empty `resume_from`, and a line for each changed value.

    Raises:
        ConfigError: this is not a run folder, or a flag changes stage, experiment, model, data set
            or seed.
    """
    saved = flatten(read_config(run_dir))
    _check_same_kind(saved, current, run_dir)
    changes = []
    for key, value in overrides.items():
        if key == "resume_from" or key not in saved or _same(key, value, saved[key]):
            continue
        if _is_identity(key, value, saved[key]):
            raise ConfigError(
                f"{run_dir} has {key} = {saved[key]!r}, and a run keeps its model, data, rewards "
                f"and seed: start a new run for {value!r}"
            )
        changes.append(f"{key} = {value!r} (was {saved[key]!r})")
    config = current.copy_and_resolve_references()
    known = flatten(current)
    try:
        config.update_from_flattened_dict({k: v for k, v in _EARLIER.items() if k in known} | saved)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{run_dir / CONFIG_FILE} holds a wrong value: {error}") from error
    config.update_from_flattened_dict(dict(overrides))
    config.resume_from = ""
    return config, changes


def _is_identity(key: str, value: Any, saved: Any) -> bool:
    """Return whether a new value would make another run."""
    if key.endswith("timeout_s"):
        return False
    if key in _SWITCHES:
        return bool(value) != bool(saved)
    return any(key == prefix or key.startswith(f"{prefix}.") for prefix in _IDENTITY)


def _check_same_kind(saved: Mapping[str, Any], current: ConfigDict, run_dir: Path) -> None:
    task, experiment = saved.get("task_name"), saved.get("experiment")
    if task != current.task_name:
        raise ConfigError(
            f"{run_dir} is a run of {task}, not of {current.task_name}: give the config file that "
            "it was started with"
        )
    if current.experiment and current.experiment != experiment:
        raise ConfigError(
            f"{run_dir} is a run of the experiment {experiment!r}, not of {current.experiment!r}: "
            "start a new run, or name the config file alone"
        )
    unknown = sorted(saved.keys() - flatten(current).keys())
    if unknown:
        raise ConfigError(
            f"{run_dir / CONFIG_FILE} has the key {unknown[0]!r}, which this version does not know"
        )


def _same(key: str, one: object, other: object) -> bool:
    if one and other and key.endswith(("_dir", "_path")):
        return Path(str(one)).resolve() == Path(str(other)).resolve()
    return one == other
