r"""Train a model.

    python -m chemeleon2_jax.train --config=configs/train_vae.py:tiny/vae_dng
    python -m chemeleon2_jax.train --config=configs/train_vae.py:mp_20/vae_dng \
        --config.trainer.max_epochs=100 --config.data.batch_size=128
    python -m chemeleon2_jax.train --config=configs/train_ldm.py:mp_20/ldm_null --print_config
    python -m chemeleon2_jax.train --config=configs/train_vae.py \
        --config.resume_from=logs/train_vae/runs/<run>

The part after the colon is an experiment; without one the base config runs. Every value of the
config is a flag; --config=<file> --explain_config lists them with their meanings.
"""

import importlib
import itertools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from chemeleon2_jax.common import hosts
from chemeleon2_jax.common.errors import ConfigError, RewardError, UserError
from chemeleon2_jax.common.paths import expand_path
from chemeleon2_jax.runs import command_line as cli
from chemeleon2_jax.runs.config import (
    add_config_root,
    expand_paths,
    expand_value,
    fit_config,
    flatten,
    load_config,
    start_folder,
    to_json,
    unwrap_hub_keys,
)
from chemeleon2_jax.runs.config_checks import check_config, check_overrides
from chemeleon2_jax.runs.explain import explain
from chemeleon2_jax.runs.joining import joined
from chemeleon2_jax.runs.next_step import next_step
from chemeleon2_jax.runs.original_names import TASKS, explain_argument, take_values
from chemeleon2_jax.runs.run_folder import (
    make_run_dir,
    newest_run,
    remove_unused,
    resumed_config,
    save_config,
)
from chemeleon2_jax.runs.shared_folder import check_shared

config_flags.DEFINE_config_file("config", None, "configs/train_<stage>.py[:experiment]")
flags.DEFINE_bool("print_config", False, "Print the resolved config as JSON and exit.")
flags.DEFINE_bool(
    "explain_config", False, "Print each key of the config, its value and what it means, and exit."
)

_LOG_FILE = "train.log"
AUTO = "auto"


@dataclass(frozen=True)
class Plan:
    """A checked command line.

    Attributes:
        config: resolved and checked.
        resume_dir: folder of the run to resume; None starts a new run.
        changes: a line for each value that differs from the resumed run's.
        notes: lines about the data of the model that a new run starts from.
        config_file: Python file of the config.
    """

    config: ConfigDict
    resume_dir: Path | None = None
    changes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    config_file: Path = Path("configs/train.py")


def parse_flags(argv: list[str]) -> list[str]:
    """Parse the arguments; mistakes in the config get one line, not config_flags' traceback.

    Raises:
        ConfigError: the config file, its experiment or an override is wrong.
        flags.Error: another flag is wrong.
    """
    specs, others = _split_config_flag(argv[1:])
    specs = [_expand_file(spec) for spec in specs]
    _check_arguments(others, spec=specs[0] if len(specs) == 1 else "")
    if len(specs) > 1:
        raise ConfigError(f"--config is given {len(specs)} times: {', '.join(specs)}")
    ordered = [argv[0], *(f"--config={spec}" for spec in specs), *others]
    if specs:
        check_overrides(load_config(specs[0]), others)
    # config_flags reads sys.argv and needs the file before the overrides.
    sys.argv = ordered
    return flags.FLAGS(ordered)


def _expand_file(spec: str) -> str:
    """Expand the path of <path>:<experiment>."""
    path, colon, experiment = spec.partition(":")
    return f"{expand_path(path)}{colon}{experiment}" if path and "://" not in spec else spec


def _check_arguments(arguments: list[str], *, spec: str) -> None:
    """Refuse what is no flag, with what to type instead."""
    follows_flag = False  # and may be its value
    for argument, value in itertools.pairwise([*arguments, ""]):
        is_flag = argument.startswith("-")
        name = argument.lstrip("-").partition("=")[0]
        known = name.partition(".")[0] in ("config", "noconfig") or name in flags.FLAGS
        if not (is_flag and known) and not follows_flag:
            advice = explain_argument(argument, "" if "=" in argument else value, spec=spec)
            if advice:
                raise ConfigError(f"{argument} is no flag here: {advice}")
        follows_flag = is_flag and "=" not in argument


def _split_config_flag(arguments: list[str]) -> tuple[list[str], list[str]]:
    specs, others = [], []
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, value = argument.partition("=")
        if name in ("--config", "-config"):
            specs.append(value if equals else next(remaining, ""))
        else:
            others.append(argument)
    return specs, others


def make_plan(config: ConfigDict | None, overrides: dict[str, object]) -> Plan:
    """Resolve and check a command line.

    Args:
        config: of the file and experiment, with the overrides; None without a file.
        overrides: {dotted key: value} of the overrides alone.

    Raises:
        ConfigError: there is no config, a value is wrong, or the run cannot be resumed with it.
    """
    if config is None:
        raise ConfigError("give a config: --config=configs/train_vae.py:tiny/vae_dng, for example")
    expand_paths(config)
    overrides = {key: expand_value(key, value) for key, value in overrides.items()}
    run_dir = _run_to_resume(config)
    if run_dir is None:
        config.resume_from = ""
        unwrap_hub_keys(config)
        renamed = take_values(config)
        plan = Plan(config, notes=(*renamed, *_follow_start(config, overrides)))
    else:
        resumed, changes = resumed_config(config, overrides, run_dir)
        unwrap_hub_keys(resumed)
        plan = Plan(resumed, run_dir, tuple(changes))
    check_config(plan.config)
    return plan


def _run_to_resume(config: ConfigDict) -> Path | None:
    """Return the folder of the run to resume; None for a new run."""
    if config.resume_from != AUTO:
        return Path(config.resume_from) if config.resume_from else None
    if not config.run_name:
        raise ConfigError(
            "resume_from = auto resumes the newest run of a name: give --config.run_name=<name> too"
        )
    return hosts.from_first(
        lambda: newest_run(config.paths.log_dir, config.task_name, config.run_name)
    )


def _follow_start(config: ConfigDict, overrides: dict[str, object]) -> tuple[str, ...]:
    """Give a new run the data of its start, in place; return lines about it."""
    if not start_folder(config):
        return ()
    from chemeleon2_jax.stages.start_data import follow_start  # loads JAX

    return tuple(follow_start(config, overrides))


def train(plan: Plan) -> int:
    """Train in a run folder and return the exit code.

    Raises:
        UserError: of any kind; the text says what to do.
    """
    config = plan.config
    if plan.resume_dir is not None and not os.access(plan.resume_dir, os.W_OK | os.X_OK):
        raise ConfigError(
            f"resume_from: {plan.resume_dir} cannot be written to, and a run is resumed in its "
            "folder: make it writable, or resume a copy"
        )
    hosts.check_same({f"value of {key}": value for key, value in flatten(config).items()})
    run_dir = hosts.from_first(
        lambda: (
            plan.resume_dir
            or make_run_dir(config.paths.log_dir, config.task_name, name=config.run_name)
        )
    )
    check_shared(run_dir, key="paths.log_dir")
    started = False

    def start() -> None:
        nonlocal started
        started = True
        if plan.resume_dir is not None and hosts.is_first():
            save_config(config, run_dir)

    try:
        # A new run has its config from the beginning, so that it can be resumed whenever it is
        # killed; a resumed run keeps the old one until `start`.
        if plan.resume_dir is None and hosts.is_first():
            save_config(config, run_dir)
        return _train_in(run_dir, plan, on_start=start)
    except UserError:
        if plan.resume_dir is None and not started and hosts.is_first():
            remove_unused(run_dir, _LOG_FILE)
        raise


def _train_in(run_dir: Path, plan: Plan, *, on_start: Callable[[], None]) -> int:
    config = plan.config
    with cli.log_file(run_dir / (_LOG_FILE if hosts.is_first() else _other_log_file())):
        logging.info("Run folder: %s", run_dir)
        for change in plan.changes:
            logging.info("Changed for this part of the run: %s", change)
        for note in plan.notes:
            logging.info("%s", note)
        # After the log file is open: importing JAX and pymatgen takes seconds.
        from chemeleon2_jax import stages
        from chemeleon2_jax.stages.start_data import check_can_sample
        from chemeleon2_jax.training.compilation import enable_compilation_cache
        from chemeleon2_jax.training.loop import fit
        from chemeleon2_jax.training.parallel import make_mesh

        enable_compilation_cache()
        try:
            make_mesh(config.trainer.num_devices)
        except ValueError as error:
            raise ConfigError(f"trainer.num_devices: {error}") from error
        stage = stages.build(config, resume_dir=plan.resume_dir)
        check_can_sample(stage.meta, resumed=plan.resume_dir is not None)
        try:
            result = fit(
                stage,
                fit_config(config),
                run_dir=run_dir,
                resume=plan.resume_dir is not None,
                config_text=to_json(config),
                on_start=on_start,
            )
        except RewardError as error:
            raise RewardError(
                f"{error}. The run so far is in {run_dir}: mend the reward, and resume with "
                f"--config.resume_from={run_dir}"
            ) from error
        if result.status != "interrupted":
            best = "" if result.best_step is None else f"; the best is of step {result.best_step}"
            logging.info("Done at step %d%s", result.step, best)
            line = next_step(config, run_dir, config_file=plan.config_file, examples=stage.examples)
            logging.info("%s", line)
    return result.exit_code


def _other_log_file() -> str:
    """Return the name of the log of a process that is not the first."""
    return f"train.{hosts.index()}.log"


def main() -> int:
    """Train as the flags say; return the exit code."""
    flag_values = flags.FLAGS
    overrides, config_file = {}, ""
    if flag_values.config is not None:
        overrides = config_flags.get_override_values(flag_values["config"])
        config_file = config_flags.get_config_filename(flag_values["config"]).partition(":")[0]

    def plan() -> Plan:
        resolved = make_plan(flag_values.config, overrides)
        return replace(resolved, config_file=Path(config_file))

    if flag_values.print_config or flag_values.explain_config:
        resolved = plan()
    if flag_values.print_config:
        for note in resolved.notes:
            logging.info("%s", note)
        print(to_json(resolved.config))
        return 0
    if flag_values.explain_config:
        files = [resolved.config_file, resolved.config_file.with_name("common.py")]
        print(explain(resolved.config, [file for file in files if file.is_file()]))
        return 0
    with joined():
        return train(plan())


def list_experiments(folder: Path) -> str:
    """Return lines with the experiments of each stage, as values of --config."""
    if not (folder / "common.py").is_file():
        return (
            f"Experiments are files of configs/experiment in the checkout; {folder} is not there."
        )
    add_config_root(folder / "common.py")
    common = importlib.import_module("configs.common")
    lines = ["Experiments, as --config=<file>:<experiment>:"]
    for task in TASKS:
        lines.append(f"  {folder / task}.py:")
        lines += [f"    {name}" for name in common.experiments(task)]
    return "\n".join(lines)


if __name__ == "__main__":
    if any(argument.lstrip("-") in ("help", "helpshort", "h", "?") for argument in sys.argv[1:]):
        __doc__ = f"{__doc__}\n{list_experiments(Path('configs'))}\n"
    cli.run(main, parse_flags=parse_flags)
