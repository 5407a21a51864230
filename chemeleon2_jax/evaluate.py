r"""Evaluate generated crystals.

    python -m chemeleon2_jax.evaluate --structures=outputs/dng --reference=mp-20 \
        --output_dir=outputs/dng/eval
    python -m chemeleon2_jax.evaluate --structures=path/to/cifs --metrics=valid,composition_valid \
        --output_dir=outputs/eval

Writes metrics.csv (a row for each crystal that was asked for, with status and reason) and, last,
summary.json. Shares are of all crystals asked for: those that could not be built have failed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from chemeleon2_jax.common.atomic_files import SUMMARY_FILE, TABLE_FILE
from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.common.paths import expand_path, printable
from chemeleon2_jax.runs import command_line as cli
from chemeleon2_jax.runs.original_names import EVALUATE_FLAGS

if TYPE_CHECKING:
    from rich.table import Table

    from chemeleon2_jax.metrics.report import Report

flags.DEFINE_string(
    "structures",
    "",
    "A folder that sample wrote; a folder, with its subfolders, or .zip archive of CIFs, POSCARs "
    "and JSON files; or a .json, .csv, .cif or .vasp file, gzipped or not.",
)
flags.DEFINE_string(
    "reference",
    "",
    "Known crystals: a data set (mp-20), a folder with train.csv, or anything that --structures "
    "takes.",
)
flags.DEFINE_list("reference_splits", ["train"], "Splits of the data set that count.")
flags.DEFINE_string(
    "rename",
    "",
    "Columns of CSV files of structures and reference, as in structure:cif,id:material_id.",
)
flags.DEFINE_list(
    "metrics", [], "Metrics in the order of the table; default: all that can be computed."
)
flags.DEFINE_string(
    "feature_model",
    "",
    "A VAE, or a model with one, whose features of generated and known crystals are compared.",
)
flags.DEFINE_bool("verify", True, "Compare the arrays of checkpoints with their checksums.")
flags.DEFINE_string("output_dir", "", "Folder to write to.")
flags.DEFINE_float(
    "ltol", 0.2, "StructureMatcher's tolerance of cell lengths, relative.", lower_bound=0.0
)
flags.DEFINE_float(
    "stol", 0.3, "Its tolerance of sites, over the cube root of volume per atom.", lower_bound=0.0
)
flags.DEFINE_float("angle_tol", 5.0, "Its tolerance of cell angles, in degrees.", lower_bound=0.0)
flags.DEFINE_enum(
    "unique_rule",
    "first",
    ["first", "components"],
    "Groups of the same crystals: of the first one that fits, as StructureMatcher groups, which "
    "can depend on the order; or by chains of fits, which do not, but compare all pairs.",
)
flags.DEFINE_float("timeout_s", 3.0, "Limit for one comparison, in seconds.", lower_bound=0.01)
flags.DEFINE_integer("num_workers", 0, "Processes; 0 is one a CPU core, up to 16.", lower_bound=0)


def main() -> int:
    """Do what the flags say."""
    values = flags.FLAGS
    for name in ("structures", "output_dir"):
        if not getattr(values, name):
            raise ConfigError(f"give --{name}; see python -m chemeleon2_jax.evaluate --help")
    output_dir = expand_path(values.output_dir)
    cli.check_output_dir(output_dir)

    # After the flags are checked: loading pymatgen takes a second.
    from chemeleon2_jax.metrics.matching import Tolerances
    from chemeleon2_jax.metrics.registry import FEATURES, REFERENCE, choose_metrics
    from chemeleon2_jax.metrics.report import evaluate
    from chemeleon2_jax.runs.config import rename_columns

    inputs = {REFERENCE: values.reference, FEATURES: values.feature_model}
    try:
        choose_metrics(values.metrics, given={need for need, value in inputs.items() if value})
    except ValueError as error:
        raise ConfigError(f"--metrics: {error}") from error
    report = evaluate(
        values.structures,
        values.reference or None,
        values.metrics,
        reference_splits=values.reference_splits,
        rename=rename_columns(values.rename, key="--rename"),
        tolerances=Tolerances(values.ltol, values.stol, values.angle_tol),
        timeout_s=values.timeout_s,
        num_workers=values.num_workers or None,
        unique_rule=values.unique_rule,
        feature_model=_load_vae(values.feature_model) if values.feature_model else None,
    )
    _write(output_dir, report)
    _print(report.summary, output_dir)
    return 0


def _load_vae(path: str) -> Any:
    from chemeleon2_jax.inference.api import load_model  # loads JAX

    model = load_model(path, verify=flags.FLAGS.verify)
    return getattr(model, "vae", model)


def _write(output_dir: Path, report: Report) -> None:
    cli.make_output_dir(output_dir)
    try:
        # The summary of an earlier run must not stand beside the new table.
        (output_dir / SUMMARY_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"an earlier summary cannot be removed: {error}") from error
    cli.write_file(
        output_dir / TABLE_FILE, report.table.to_csv().encode("utf-8", "backslashreplace")
    )
    summary = json.dumps(report.summary, indent=2, allow_nan=False) + "\n"
    cli.write_file(output_dir / SUMMARY_FILE, summary.encode())


def _print(summary: dict[str, Any], output_dir: Path) -> None:
    from rich.console import Console

    # No markup: a name may hold brackets.
    console = Console(markup=False)
    console.print(_tabulate(summary))
    reference = summary["reference"]
    text = "in brackets, 95 % bootstrap intervals; at random: same cells, random coordinates"
    console.print(f"values     {text}", soft_wrap=True, highlight=False)
    if reference is not None:
        splits = f" ({', '.join(reference['splits'])})" if reference["splits"] else ""
        text = f"{reference['name']}{splits}: {reference['count']} crystals"
        console.print(f"reference  {printable(text)}", soft_wrap=True, highlight=False)
    for label, name in (("table", TABLE_FILE), ("summary", SUMMARY_FILE)):
        console.print(
            f"{label:<10} {printable(output_dir / name)}", soft_wrap=True, highlight=False
        )


def _tabulate(summary: dict[str, Any]) -> Table:
    """Return a row for what was built and for each metric: its value, and what failed and why."""
    from rich.table import Table
    from rich.text import Text

    from chemeleon2_jax.metrics.metric import describe
    from chemeleon2_jax.metrics.registry import METRICS

    structures = summary["structures"]
    asked, built = structures["asked"], structures["built"]
    missing, warnings = structures["without_crystal"], structures["warnings"]
    title = f"{printable(structures['source'])}: {asked} crystals"
    table = Table(title=Text(title), title_justify="left")
    for heading in ("metric", "", "failed, and why"):
        table.add_column(heading, overflow="fold")  # a name may be wider than its column
    table.add_row("built", f"{built / asked:.1%} ({built})", _list_kinds(missing))
    if warnings:
        table.add_row("read with a warning", str(sum(warnings.values())), _list_kinds(warnings))
    random = summary["random"]
    for name, result in summary["metrics"].items():
        kinds = {**result.get("failed", {}), **result["no_value"]}
        shown = {kind: count for kind, count in kinds.items() if kind not in missing}
        value = _value_text(result)
        if name in random["shares"]:
            value += f"\n{random['shares'][name]:.1%} at random"
        table.add_row(f"{name}: {describe(METRICS[name])}", value, _list_kinds(shown))
    for name, result in summary["set"].items():
        value = "none" if result["reason"] else f"{result['value']:.4g} {result['unit']}"
        table.add_row(f"{name}: {describe(METRICS[name])}", value, result["reason"] or "")
    return table


def _value_text(result: dict[str, Any]) -> str:
    if "share" in result:
        if result["share"] is None:
            return "undecided"
        low, high = result["interval"]
        undecided = f", {result['undecided']} undecided" if result["undecided"] else ""
        return f"{result['share']:.1%} [{low:.1%}, {high:.1%}] ({result['passed']}{undecided})"
    if not result["count"]:
        return "none"
    if "counts" in result:
        most_common = list(result["counts"].items())[:3]
        return ", ".join(f"{label} ({count})" for label, count in most_common)
    low, high = result["interval"]
    return f"{result['mean']:.4g} [{low:.4g}, {high:.4g}] {result['unit']}"


def _list_kinds(kinds: dict[str, int]) -> str:
    return "\n".join(f"{count} x {kind}" for kind, count in kinds.items())


if __name__ == "__main__":
    cli.run(main, aliases=EVALUATE_FLAGS)
