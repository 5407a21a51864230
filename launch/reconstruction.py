r"""Measure the reconstruction of a data set's crystals by a VAE.

    python launch/reconstruction.py --model=logs/train_vae/runs/<run> --split=test
    python launch/reconstruction.py --model=... --data_dir=<folder with test.csv> --num_samples=0

Every crystal is encoded to its mean latents, decoded, and matched to itself with pymatgen's
StructureMatcher, at its default tolerances (0.2, 0.3, 5 degrees) and at (0.3, 0.5, 10). `match`
requires every atom within the tolerance (`StructureMatcher.fit`); `match by RMS`, the count of most
benchmarks, the root mean square displacement (`get_rms_dist`).
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.runs import command_line as cli

flags.DEFINE_string("model", "", "A run folder or checkpoint folder of a VAE, or of an LDM.")
flags.DEFINE_string("data_name", "", "Published data set; default: the model's training data.")
flags.DEFINE_string("data_dir", "", "Folder with <split>.csv[.gz]; replaces --data_name.")
flags.DEFINE_enum("split", "test", ["train", "val", "test"], "Part of the data set.")
flags.DEFINE_integer("num_samples", 0, "Crystals, spread over the split; 0 for all.", lower_bound=0)
flags.DEFINE_float("timeout_s", 3.0, "Limit for one match, in seconds.")
flags.DEFINE_string("json", "", "File to write the numbers to.")


def main() -> int:
    """Encode, decode and match."""
    values = flags.FLAGS
    if not values.model:
        raise ConfigError("give --model=<run folder of a VAE>")
    # After the flags are checked: loading JAX and pymatgen takes seconds.
    from chemeleon2_jax.crystals.structures import arrays_from_structure, crystals_to_structures
    from chemeleon2_jax.data.datasets import load_split
    from chemeleon2_jax.inference.api import VAEModel, load_model
    from chemeleon2_jax.metrics.reconstruction import match_rates
    from chemeleon2_jax.workers import WorkerPool

    model = load_model(values.model)
    vae = model if isinstance(model, VAEModel) else model.vae
    config = model.meta.config if model.meta else {}
    trained_on = config.get("data", {"name": "", "data_dir": ""})
    name = values.data_name or trained_on["name"]
    data_dir = values.data_dir or ("" if values.data_name else trained_on["data_dir"])
    if not name and not data_dir:
        raise ConfigError(
            f"{values.model} does not name its training data; give --data_name or --data_dir"
        )
    crystals = load_split(name, values.split, data_dir=data_dir).crystals
    if values.num_samples and values.num_samples < len(crystals):
        spread = np.linspace(0, len(crystals) - 1, values.num_samples)
        crystals = crystals.take(spread.astype(int))
    structures = crystals_to_structures(crystals)
    means, _ = vae.encode(structures)
    predicts = vae.parts.sizes.atom_type_predict
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # crystals that cannot be built are counted below
        decoded = vae.decode(
            means,
            atom_types=None if predicts else [np.array(s.atomic_numbers) for s in structures],
        )
    pairs = [
        (None if built is None else arrays_from_structure(built), arrays_from_structure(target))
        for built, target in zip(decoded, structures, strict=True)
    ]
    with WorkerPool() as pool:
        results = match_rates(pairs, pool, timeout_s=values.timeout_s)
    report(results, len(pairs), json_path=values.json)
    return 0


def report(results: Any, count: int, *, json_path: str) -> None:
    """Print the table and write the JSON."""
    table = Table(title=f"reconstruction of {count} crystals")
    for column in ("tolerances", "match", "match by RMS", "mean RMS", "not matched because"):
        table.add_column(column)
    labels = {"match_rate": "0.2, 0.3, 5", "match_rate_loose": "0.3, 0.5, 10"}
    numbers: dict[str, Any] = {"num_crystals": count}
    for name, result in results.items():
        rms = "-" if result.mean_rms is None else f"{result.mean_rms:.4f}"
        reasons = ", ".join(f"{n} x {kind}" for kind, n in result.counts.items()) or "-"
        rates = f"{result.rate:.2%}", f"{result.rate_by_rms:.2%}"
        table.add_row(labels[name], *rates, rms, reasons)
        numbers[name] = {
            "rate": result.rate,
            "rate_by_rms": result.rate_by_rms,
            "mean_rms": result.mean_rms,
            "counts": result.counts,
        }
    Console().print(table)
    if json_path:
        Path(json_path).write_text(json.dumps(numbers, indent=2))


if __name__ == "__main__":
    cli.run(main)
