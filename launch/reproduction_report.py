"""The reference table as Markdown, from what the commands of `reproduce.py` wrote."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chemeleon2_jax.common.atomic_files import REPORT_FILE, SUMMARY_FILE, TABLE_FILE
from chemeleon2_jax.common.version import __version__
from chemeleon2_jax.runs import command_line as cli
from chemeleon2_jax.runs.run_folder import read_config
from launch.reproduction_rows import Request
from launch.reproduction_state import Done

CURVE_TABLE, CURVE_PICTURE = "curve.md", "curve.png"
DATA_PLACEHOLDER, WORK_PLACEHOLDER = "<data>", "<work>"

_HEAD = """# Reference results

Each line is a data set, a recipe and a seed, trained, sampled and evaluated with the commands below
by `launch/reproduce.py`; chemeleon2_jax {version}. CPU minutes are user and system time of training
VAE and LDM. Shares are of all crystals that were asked for. `match`: crystals of the test set that
StructureMatcher (0.2, 0.3, 5 degrees) finds equal after encoding and decoding. `covalent`: no pair
of atoms closer than 0.7 of their covalent radii. `copies`: crystals that match one of the training
set; `novel` is the rest. W: Wasserstein distance from the training set. Crystals a second include
the start of the program and its compilation.
"""

_COLUMNS = {
    "CPU min": ".0f",
    "match %": ".1f",
    "valid %": ".1f",
    "covalent %": ".1f",
    "composition %": ".1f",
    "unique %": ".1f",
    "novel %": ".1f",
    "copies %": ".1f",
    "W density": ".3f",
    "W elements": ".3f",
    "crystals/s": ".0f",
}


@dataclass(frozen=True)
class Result:
    """A whole row: its request, and the results of its commands by name."""

    request: Request
    done: Mapping[str, Done]


def write_results(results: Sequence[Result], path: Path) -> None:
    """Write the table of all results, and the pictures of their curves beside it.

    Raises:
        ConfigError: it cannot be written.
    """
    sections = [_HEAD.format(version=__version__), _main_table(results)]
    reinforced = [r for r in results if "rl_sample" in r.done]
    if reinforced:
        sections += ["## Reinforcement learning and its control\n", _rl_table(reinforced)]
    path.parent.mkdir(parents=True, exist_ok=True)
    curves = [_curve(result, path.parent) for result in results if "curve" in result.done]
    if curves:
        sections += ["## Quality against steps of the sampler\n", *curves]
    sections += ["## Commands\n", *(_commands(result) for result in _one_a_row(results))]
    cli.write_file(path, "\n".join(sections).encode())


def _main_table(results: Sequence[Result]) -> str:
    measured = [(result, _numbers(result)) for result in results]
    lines = []
    for name in dict.fromkeys(result.request.row.name for result in results):
        own = [pair for pair in measured if pair[0].request.row.name == name]
        lines += [[*_labels(result), *_format(numbers)] for result, numbers in own]
        if len(own) > 1:
            lines.append([name, "", "mean ± sd", *_mean_and_spread([n for _, n in own])])
    return _table(["row", "recipe", "seed", *_COLUMNS], lines)


def _labels(result: Result) -> list[str]:
    row = result.request.row
    return [row.name, f"{row.recipe.vae}, {row.recipe.ldm}", str(result.request.seed)]


def _numbers(result: Result) -> dict[str, float]:
    """Return the values of `_COLUMNS`; NaN where there is none."""
    done = result.done
    report = _read(done["sample"].folder / REPORT_FILE)
    match = _read(done["reconstruction"].folder / "reconstruction.json")["match_rate"]["rate"]
    summary = _read(done["sample_evaluate"].folder / SUMMARY_FILE)
    shares = {
        name: 100 * value["share"] for name, value in summary["metrics"].items() if "share" in value
    }
    distances = {name: value["value"] for name, value in summary["set"].items()}
    values = (
        (done["vae"].cpu_seconds + done["ldm"].cpu_seconds) / 60,
        100 * match,
        shares["valid"],
        shares["covalent"],
        shares["composition_valid"],
        shares["unique"],
        shares["novel"],
        100 - shares["novel"],
        distances["wasserstein_density"],
        distances["wasserstein_num_elements"],
        report["num_samples"] / report["seconds"],
    )
    return {
        name: float("nan") if value is None else value
        for name, value in zip(_COLUMNS, values, strict=True)
    }


def _format(numbers: Mapping[str, float]) -> list[str]:
    return [f"{value:{_COLUMNS[name]}}" for name, value in numbers.items()]


def _mean_and_spread(measured: Sequence[Mapping[str, float]]) -> list[str]:
    texts = []
    for name, form in _COLUMNS.items():
        values = [numbers[name] for numbers in measured]
        texts.append(f"{np.mean(values):{form}} ± {np.std(values, ddof=1):{form}}")
    return texts


def _rl_table(results: Iterable[Result]) -> str:
    """Distance from the density that is rewarded, before and after, and after with the rewards of
    other crystals.
    """
    lines = []
    for result in results:
        config = read_config(result.done["rl"].run)
        target = config["rl_module"]["reward_fn"]["atomic_density"]["target"]
        for label, name in (
            ("before", "sample"),
            ("rewarded", "rl_sample"),
            ("rewards shuffled", "rl_shuffled_sample"),
        ):
            folder = result.done[f"{name}_evaluate"].folder
            metrics = _read(folder / SUMMARY_FILE)["metrics"]
            crystals = pd.read_csv(folder / TABLE_FILE)
            valid = crystals[crystals["valid"].astype(str) == "True"]
            error = (valid["atomic_density"] - target).abs().mean()
            shares = [
                f"{100 * metrics[key]['share']:.1f}"
                for key in ("valid", "covalent", "unique", "novel")
            ]
            request = result.request
            lines.append([request.row.name, str(request.seed), label, f"{error:.4f}", *shares])
    columns = ["row", "seed", "model", "distance from the target, 1/Å³"]
    return _table([*columns, "valid %", "covalent %", "unique %", "novel %"], lines)


def _curve(result: Result, folder: Path) -> str:
    """Return the section of a curve, and copy its picture beside the table."""
    row, seed = result.request.row.name, result.request.seed
    source = result.done["curve"].folder
    picture = Path("images") / f"steps_{row}_seed{seed}.png"
    (folder / picture.parent).mkdir(exist_ok=True)
    shutil.copyfile(source / CURVE_PICTURE, folder / picture)
    table = (source / CURVE_TABLE).read_text()
    return f"### {row}, seed {seed}\n\n{table}\n![Quality against steps]({picture.as_posix()})\n"


def _one_a_row(results: Sequence[Result]) -> list[Result]:
    return list({result.request.row.name: result for result in reversed(results)}.values())[::-1]


def _commands(result: Result) -> str:
    row, seed = result.request.row.name, result.request.seed
    lines = []
    for done in result.done.values():
        command = done.command.replace(str(done.folder.parent), WORK_PLACEHOLDER)
        lines.append(command.replace(str(result.request.data_dir), DATA_PLACEHOLDER))
    return "\n".join([f"### {row}, seed {seed}\n", "```bash", *lines, "```\n"])


def _table(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [columns, ["---"] * len(columns), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _read(path: Path) -> Any:
    return json.loads(path.read_text())
