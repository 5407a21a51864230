r"""Measure what a diffusion model can do with a VAE's latents.

    python launch/latents.py --model=logs/train_vae/runs/<run> --split=val
    python launch/latents.py --model=... --data_dir=<folder with val.csv> --posterior_scale=0.5 \
        --json=latents.json --figure=latents.png

Crystals are encoded, noise of rising shares of each channel's spread is added to their latents, and
what is decoded is compared with them: `match` at StructureMatcher's default tolerances, `covalent`
where all atoms are farther apart than 0.7 of their covalent radii. Noise is added to the means, to
sampled posteriors, and to those with --posterior_scale of the posterior's standard deviation. A
second table has each channel's spread, the posterior's width and its information.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
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
flags.DEFINE_enum("split", "val", ["train", "val", "test"], "Part of the data set.")
flags.DEFINE_integer("num_samples", 256, "Crystals, over the split; 0 for all.", lower_bound=0)
flags.DEFINE_float(
    "posterior_scale", 1.0, "Share of the posterior's spread, for one more curve.", lower_bound=0.0
)
flags.DEFINE_float("timeout_s", 3.0, "Limit for one match, in seconds.")
flags.DEFINE_integer("seed", 0, "Of the noise.")
flags.DEFINE_string("json", "", "File to write the numbers to.")
flags.DEFINE_string("figure", "", "PNG to write the figure to.")


def main() -> int:
    """Encode, add noise, decode and compare."""
    values = flags.FLAGS
    if not values.model:
        raise ConfigError("give --model=<run folder of a VAE>")
    # After the flags are checked: loading JAX and pymatgen takes seconds.
    from chemeleon2_jax.data.datasets import load_split
    from chemeleon2_jax.inference.api import VAEModel, load_model
    from chemeleon2_jax.metrics.latents import Posteriors, tolerance_curves
    from chemeleon2_jax.workers import WorkerPool

    model = load_model(values.model)
    vae = model if isinstance(model, VAEModel) else model.vae
    name, data_dir = training_data(model)
    if values.data_name or values.data_dir:
        name, data_dir = values.data_name, values.data_dir
    if not name and not data_dir:
        raise ConfigError(
            f"{values.model} does not name its training data; give --data_name or --data_dir"
        )
    crystals = load_split(name, values.split, data_dir=data_dir).crystals
    if values.num_samples and values.num_samples < len(crystals):
        spread = np.linspace(0, len(crystals) - 1, values.num_samples)
        crystals = crystals.take(spread.astype(int))
    for output in filter(None, (values.json, values.figure)):
        Path(output).parent.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    posteriors = Posteriors(*vae.encode_crystals(crystals))
    with WorkerPool() as pool:
        points = tolerance_curves(
            lambda latents: vae.decode_onto(latents, crystals),
            posteriors,
            crystals,
            pool=pool,
            posterior_scales=tuple(dict.fromkeys((0.0, 1.0, values.posterior_scale))),
            timeout_s=values.timeout_s,
            seed=values.seed,
        )
    report(posteriors, points, len(crystals))
    if values.json:
        Path(values.json).write_text(json.dumps(numbers(posteriors, points), indent=2))
    if values.figure:
        save_figure(posteriors, points, Path(values.figure))
    return 0


def training_data(model: Any) -> tuple[str, str]:
    """Return name and folder of the data that a model was trained on; '' where it tells none."""
    config = model.meta.config if model.meta else {}
    data = config.get("data", {"name": "", "data_dir": ""})
    return data["name"], data["data_dir"]


def report(posteriors: Any, points: Sequence[Any], count: int) -> None:
    """Print the tables."""
    table = Table(title=f"tolerance of the decoder, {count} crystals")
    for column in ("posterior", "noise", "match", "covalent"):
        table.add_column(column, justify="right")
    for point in points:
        table.add_row(
            f"x {point.posterior_scale:g}" if point.posterior_scale else "mean",
            f"{point.level:.0%}",
            f"{point.match_rate:.1%}",
            f"{point.covalent_share:.1%}",
        )
    Console().print(table)
    nats, spread, widths = posteriors.nats(), posteriors.spread(1.0), posteriors.widths()
    channels = Table(title=f"latents: {nats.sum():.1f} nats an atom")
    for column in ("channel", "spread", "posterior width", "nats an atom"):
        channels.add_column(column, justify="right")
    for index, row in enumerate(zip(spread, widths, nats, strict=True)):
        channels.add_row(str(index), *(f"{value:.3f}" for value in row))
    Console().print(channels)


def numbers(posteriors: Any, points: Sequence[Any]) -> dict[str, Any]:
    """Return what the tables show, as plain values."""
    return {
        "points": [asdict(point) for point in points],
        "spread": posteriors.spread(1.0).tolist(),
        "posterior_width": posteriors.widths().tolist(),
        "nats_per_atom": posteriors.nats().tolist(),
    }


def save_figure(posteriors: Any, points: Sequence[Any], path: Path) -> None:
    """Draw the figure into a PNG."""
    from matplotlib.image import imsave

    from chemeleon2_jax.metrics.latents_figure import draw_latents

    imsave(path, draw_latents(posteriors, points))


if __name__ == "__main__":
    cli.run(main)
