r"""Evaluate generated crystals.

    python -m chemeleon2_jax.evaluate --structures=outputs/dng --reference=mp-20 \
        --output_dir=outputs/dng/eval
    python -m chemeleon2_jax.evaluate --structures=path/to/cifs --metrics=valid,composition_valid \
        --output_dir=outputs/eval

Writes metrics.csv (a row for each crystal that was asked for, with status and reason) and, last,
summary.json. Shares are of all crystals asked for: what could not be built has failed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.runs import command_line as cli

if TYPE_CHECKING:
    from chemeleon2_jax.metrics.table import Report

TABLE_FILE = "metrics.csv"
SUMMARY_FILE = "summary.json"


flags.DEFINE_string(
    "structures",
    "",
    "A folder that sample wrote, a folder of CIFs, or a .json, .json.gz, .csv, .csv.gz or .cif "
    "file.",
)
flags.DEFINE_string(
    "reference",
    "",
    "What is not novel: a data set (mp-20), a folder with train.csv, or anything that --structures "
    "takes.",
)
flags.DEFINE_list("reference_splits", ["train"], "Splits of the data set that count.")
flags.DEFINE_list("metrics", [], "Metrics in the order of the table; default: all.")
flags.DEFINE_string("output_dir", "", "Folder to write to.")
flags.DEFINE_float(
    "ltol", 0.2, "Relative difference of cell lengths of the same crystal.", lower_bound=0.0
)
flags.DEFINE_float(
    "stol", 0.3, "Displacement of its sites over the cube root of volume per atom.", lower_bound=0.0
)
flags.DEFINE_float("angle_tol", 5.0, "Difference of its cell angles in degrees.", lower_bound=0.0)
flags.DEFINE_float("timeout_s", 3.0, "Limit for one comparison, in seconds.", lower_bound=0.01)
flags.DEFINE_integer("num_workers", 0, "Processes; 0 is one a CPU core, up to 16.", lower_bound=0)


def main() -> int:
    """Do what the flags say."""
    values = flags.FLAGS
    for name in ("structures", "output_dir"):
        if not getattr(values, name):
            raise ConfigError(f"give --{name}; see python -m chemeleon2_jax.evaluate --help")
    output_dir = Path(values.output_dir)
    cli.check_output_dir(output_dir)

    # After the flags are checked: loading pymatgen takes a second.
    from chemeleon2_jax.metrics.reconstruction import Tolerances
    from chemeleon2_jax.metrics.registry import choose_metrics
    from chemeleon2_jax.metrics.table import evaluate

    try:
        choose_metrics(values.metrics, has_reference=bool(values.reference))
    except ValueError as error:
        raise ConfigError(f"--metrics: {error}") from error
    report = evaluate(
        values.structures,
        values.reference or None,
        values.metrics,
        reference_splits=values.reference_splits,
        tolerances=Tolerances(values.ltol, values.stol, values.angle_tol),
        timeout_s=values.timeout_s,
        num_workers=values.num_workers or None,
    )
    _write(output_dir, report)
    _print(report.summary, output_dir)
    return 0


def _write(output_dir: Path, report: Report) -> None:
    cli.make_output_dir(output_dir)
    try:
        # A summary must not stand beside another table than its own.
        (output_dir / SUMMARY_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"an earlier summary cannot be removed: {error}") from error
    cli.write_file(output_dir / TABLE_FILE, report.table.to_csv().encode())
    summary = json.dumps(report.summary, indent=2, allow_nan=False) + "\n"
    cli.write_file(output_dir / SUMMARY_FILE, summary.encode())


def _print(summary: dict[str, Any], output_dir: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from chemeleon2_jax.metrics.registry import METRICS

    asked = summary["structures"]["asked"]
    table = Table(
        title=f"{summary['structures']['source']}: {asked} crystals", title_justify="left"
    )
    for heading in ("metric", "", "failed, and why"):
        table.add_column(heading)
    built = summary["structures"]["built"]
    missing = _list_kinds(summary["structures"]["without_crystal"])
    table.add_row("built", f"{built / asked:.1%} ({built})", missing)
    for name, result in summary["metrics"].items():
        if METRICS[name].unit is None:
            value = f"{result['share']:.1%} ({result['passed']})"
        elif result["count"]:
            value = f"{result['mean']:.4g} ± {result['std']:.3g} {result['unit']}"
        else:
            value = "none"
        kinds = {**result.get("failed", {}), **result["no_value"]}
        shown = {
            k: n for k, n in kinds.items() if k not in summary["structures"]["without_crystal"]
        }
        table.add_row(f"{name}: {METRICS[name].about}", value, _list_kinds(shown))
    console = Console()
    console.print(table)
    reference = summary["reference"]
    if reference is not None:
        splits = f" ({', '.join(reference['splits'])})" if reference["splits"] else ""
        text = f"{reference['name']}{splits}: {reference['count']} crystals"
        console.print(f"reference  {text}", soft_wrap=True, highlight=False)
    for label, name in (("table", TABLE_FILE), ("summary", SUMMARY_FILE)):
        console.print(f"{label:<10} {output_dir / name}", soft_wrap=True, highlight=False)


def _list_kinds(kinds: dict[str, int]) -> str:
    return "\n".join(f"{count} x {kind}" for kind, count in kinds.items())


if __name__ == "__main__":
    cli.run(main)
