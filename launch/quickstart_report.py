"""Print the report of the quickstart: `launch/quickstart.sh` calls this at its end.

Every number is read from the runs' checkpoints or computed from the sampled crystals.
"""

import dataclasses
import gzip
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from pymatgen.core.structure import Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer, SymmetryUndeterminedError
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chemeleon2_jax.common.atomic_files import REPORT_FILE, STRUCTURES_FILE
from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.crystals.geometry import MIN_DISTANCE, randomise_coordinates
from chemeleon2_jax.crystals.visualize import save_grid
from chemeleon2_jax.data.datasets import load_split
from chemeleon2_jax.metrics.report import evaluate
from chemeleon2_jax.metrics.structure import (
    COVALENT_FACTOR,
    MIN_VOLUME_PER_ATOM,
    covalent_check,
    validity_check,
)
from chemeleon2_jax.runs import command_line as cli
from chemeleon2_jax.runs.run_folder import read_config
from chemeleon2_jax.training.checkpoint_reader import open_checkpoint

PICTURE_FILE = "crystals.png"
SUMMARY_FILE = "quickstart.json"
NUM_DRAWN = 16
SYMPREC, ANGLE_TOLERANCE = 0.2, 5.0  # angstrom, degrees
NUM_REFERENCES = 500  # a share to a few percent, in seconds

flags.DEFINE_string("vae_run", None, "Run folder of the VAE.", required=True)
flags.DEFINE_string("ldm_run", None, "Run folder of the latent diffusion model.", required=True)
flags.DEFINE_string("samples", None, "Output folder of sample.", required=True)
flags.DEFINE_string("rl_run", "", "Run folder of the model fine-tuned with rewards.")
flags.DEFINE_string("rl_samples", "", "Output folder of sample for that model.")
flags.DEFINE_list("seconds", [], "Times to print: name=seconds, comma-separated.")


@dataclasses.dataclass(frozen=True)
class Shares:
    """Shares of crystals that pass a check, 0..1.

    Attributes:
        generated: of the requested crystals; a crystal that was not built fails.
        reference: of real crystals.
        random: of the same real crystals with random coordinates.
    """

    generated: float
    reference: float
    random: float


def read_samples(folder: Path) -> tuple[list[Structure], int]:
    """Return the crystals that `sample` built, and the number of requested ones.

    Raises:
        ConfigError: the folder holds no samples.
    """
    try:
        num_samples = json.loads((folder / REPORT_FILE).read_text())["num_samples"]
        with gzip.open(folder / STRUCTURES_FILE, "rt") as file:
            return [Structure.from_dict(entry) for entry in json.load(file)], num_samples
    except (OSError, EOFError, KeyError, ValueError, zlib.error) as error:
        raise ConfigError(f"--samples: there are no samples in {folder}: {error}") from error


def density_error(structures: list[Structure], target: float) -> float:
    """Return the mean distance of the densities of valid crystals from a target, which the
    fine-tuning minimises, in atoms per cubic angstrom.
    """
    passed = validity_check(structures).passed
    valid = [s for s, good in zip(structures, passed, strict=True) if good]
    return float(np.mean([abs(len(s) / s.volume - target) for s in valid])) if valid else np.nan


def reference_crystals(run_dir: Path) -> list[Any]:
    """Return (atom_types, frac_coords, lattice) triples of the run's test set."""
    data = read_config(run_dir)["data"]
    crystals = load_split(data["name"], "test", data_dir=data["data_dir"]).crystals
    return [crystals.crystal(i) for i in range(min(len(crystals), NUM_REFERENCES))]


def check_shares(
    structures: list[Structure], references: list[Any], *, num_samples: int
) -> dict[str, Shares]:
    """Check generated crystals, and real crystals with their own and with random coordinates.

    Args:
        structures: the crystals that were built.
        references: real crystals.
        num_samples: number of requested crystals.
    """
    randomised = randomise_coordinates(references, seed=0)
    requested = [*structures, *[None] * (num_samples - len(structures))]
    return {
        name: Shares(*(check(group).share for group in (requested, references, randomised)))
        for name, check in (("valid", validity_check), ("covalent", covalent_check))
    }


def variety(structures: list[Structure], run_dir: Path) -> dict[str, Any]:
    """Return the number of reduced formulas, and the shares of the built crystals that are unique,
    and that match a training crystal of the run.
    """
    data = read_config(run_dir)["data"]
    report = evaluate(
        structures, reference=data["data_dir"] or data["name"], metrics=["unique", "novel"]
    )
    metrics = report.summary["metrics"]
    return {
        "formulas": len({s.composition.reduced_formula for s in structures}),
        "unique": metrics["unique"]["share"],
        "copies": 1.0 - metrics["novel"]["share"],
    }


def draw(structures: list[Structure], path: Path) -> Path:
    """Save a picture of the first crystals in their conventional cells, with space groups."""
    drawn = [conventional(structure) for structure in structures[:NUM_DRAWN]]
    cells, titles = zip(*drawn, strict=True) if drawn else ((None,), ("nothing was built",))
    return save_grid(cells, path, titles=titles)


def conventional(structure: Structure) -> tuple[Structure, str]:
    """Return the conventional cell and the space group, at tolerances for generated crystals; the
    cell itself where it has no symmetry.
    """
    try:
        analyzer = SpacegroupAnalyzer(structure, symprec=SYMPREC, angle_tolerance=ANGLE_TOLERANCE)
        symbol = analyzer.get_space_group_symbol()
        return analyzer.get_conventional_standard_structure(), symbol
    except (SymmetryUndeterminedError, TypeError, ValueError):
        return structure, "P1"


def best_values(run_dir: Path) -> dict[str, float]:
    """Return the validation values of a run's best checkpoint."""
    return dict(open_checkpoint(run_dir).progress.values)


def rewarded(
    run_dir: Path, samples: Path, *, before: list[Structure]
) -> tuple[dict[str, Any], dict[str, Path]]:
    """Return numbers and files of the fine-tuned model."""
    structures, asked = read_samples(samples)
    crystals = [*structures, *[None] * (asked - len(structures))]
    target = read_config(run_dir)["rl_module"]["reward_fn"]["atomic_density"]["target"]
    summary = {
        "values": best_values(run_dir),
        "asked": asked,
        "built": len(structures),
        "target": target,
        "density_error": [density_error(group, target) for group in (before, structures)],
        "valid": {"generated": validity_check(crystals).share},
        "covalent": {"generated": covalent_check(crystals).share},
    }
    picture = draw(structures, samples / PICTURE_FILE)
    return summary, {"fine-tuned": picture, "fine-tuned model": run_dir}


def print_report(summary: dict[str, Any], *, files: dict[str, Path]) -> None:
    """Print a summary as a table, and the paths of the files."""
    table = Table(title="Results", show_header=False, title_justify="left")
    vae, ldm = summary["VAE"], summary["latent diffusion"]
    table.add_row("VAE: validation loss", f"{vae['val/total_loss']:.4g}")
    for key, label in (
        ("val/match_rate", "VAE: validation crystals rebuilt (match rate)"),
        ("val/match_rate_loose", "  at the looser tolerances of its config"),
    ):
        if key in vae:  # matching can be switched off
            table.add_row(label, f"{vae[key]:.0%}")
    table.add_row("latent diffusion: validation loss", f"{ldm['val/total_loss']:.4g}")
    table.add_section()
    table.add_row("crystals requested", str(summary["asked"]))
    table.add_row("  built", str(summary["built"]))
    limits = f"distances > {MIN_DISTANCE} Å, volume > {MIN_VOLUME_PER_ATOM} Å³ per atom"
    table.add_row(f"  structurally valid ({limits})", f"{summary['valid']['generated']:.0%}")
    table.add_section()
    table.add_row(f"All pairs farther apart than {COVALENT_FACTOR} x their covalent radii", "")
    for key, label in (
        ("generated", "generated crystals"),
        ("reference", "real crystals (the test set)"),
        ("random", "the same cells with random coordinates"),
    ):
        table.add_row(f"  {label}", f"{summary['covalent'][key]:.0%}")
    table.add_section()
    if summary.get("variety"):
        kinds = summary["variety"]
        table.add_row("different formulas", str(kinds["formulas"]))
        table.add_row("unique (StructureMatcher)", f"{kinds['unique']:.0%}")
        table.add_row("the same as a training crystal", f"{kinds['copies']:.0%}")
        table.add_section()
    if "rewarded" in summary:
        after = summary["rewarded"]
        table.add_row(f"Fine-tuned towards {after['target']} atoms per cubic angstrom", "")
        errors = [f"{error:.4f}" for error in after["density_error"]]
        table.add_row("  mean distance from that, before -> after", " -> ".join(errors))
        shares = [f"{part['valid']['generated']:.0%}" for part in (summary, after)]
        table.add_row("  structurally valid", " -> ".join(shares))
        table.add_section()
    for name, seconds in summary["seconds"].items():
        table.add_row(f"time: {name}", f"{seconds:.0f} s")
    console = Console()
    console.print(table)
    for label, path in files.items():
        console.print(f"{label:<17} {path}", soft_wrap=True, highlight=False)


def main() -> int:
    """Summarise, draw, print."""
    flag_values = flags.FLAGS
    vae_run, ldm_run = Path(flag_values.vae_run), Path(flag_values.ldm_run)
    samples = Path(flag_values.samples)
    structures, asked = read_samples(samples)
    shares = check_shares(structures, reference_crystals(ldm_run), num_samples=asked)
    summary = {
        "VAE": best_values(vae_run),
        "latent diffusion": best_values(ldm_run),
        "asked": asked,
        "built": len(structures),
        "variety": variety(structures, ldm_run) if structures else {},
        **{name: dataclasses.asdict(share) for name, share in shares.items()},
        "seconds": {
            name: float(value)
            for name, _, value in (item.partition("=") for item in flag_values.seconds)
        },
    }
    files_after: dict[str, Path] = {}
    if flag_values.rl_run:
        summary["rewarded"], files_after = rewarded(
            Path(flag_values.rl_run), Path(flag_values.rl_samples), before=structures
        )
    (samples / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n")
    # If nothing could be built, the picture says so.
    picture = draw(structures, samples / PICTURE_FILE)
    files = {
        "pictures": picture,
        "crystals": samples / STRUCTURES_FILE,
        "these numbers": samples / SUMMARY_FILE,
        "VAE": vae_run,
        "latent diffusion": ldm_run,
        **files_after,
    }
    print_report(summary, files=files)
    return 0


if __name__ == "__main__":
    cli.run(main)
