r"""Measure the errors of a predictor on the crystals of a data set.

    python launch/prediction.py --model=logs/train_predictor/runs/<run> --split=test

Prints mean absolute error and R2 of each target in its unit, and the error of always predicting the
mean of the training set.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.runs import command_line as cli
from chemeleon2_jax.runs.config import rename_columns

flags.DEFINE_string("model", "", "A run folder or checkpoint folder of a predictor.")
flags.DEFINE_string("data_name", "", "Published data set; default: the model's training data.")
flags.DEFINE_string("data_dir", "", "Folder with <split>.csv[.gz]; replaces --data_name.")
flags.DEFINE_enum("split", "test", ["train", "val", "test"], "Part of the data set.")
flags.DEFINE_string("json", "", "File to write the numbers to.")


def main() -> int:
    """Predict and compare."""
    values = flags.FLAGS
    if not values.model:
        raise ConfigError("give --model=<run folder of a predictor>")
    # After the flags are checked: loading JAX and pymatgen takes seconds.
    from chemeleon2_jax.data.datasets import load_split
    from chemeleon2_jax.inference.api import PredictorModel, load_model

    model = load_model(values.model)
    if not isinstance(model, PredictorModel):
        raise ConfigError(f"{values.model} is no predictor")
    data = model.meta.config.get("data", {"name": "", "data_dir": "", "rename": ""})
    name = values.data_name or data["name"]
    data_dir = values.data_dir or ("" if values.data_name else data["data_dir"])
    if not name and not data_dir:
        raise ConfigError(
            f"{values.model} does not name its training data; give --data_name or --data_dir"
        )
    targets = tuple(target.name for target in model.parts.sizes.targets)
    options: dict[str, Any] = {
        "data_dir": data_dir,
        "targets": targets,
        "rename": rename_columns(data["rename"]),
    }
    train, crystals = (
        load_split(name, part, **options).crystals for part in ("train", values.split)
    )
    predicted = model.predict_crystals(crystals)
    numbers = {}
    for target in targets:
        known = crystals.targets[target].astype(np.float64)
        spread = float(np.mean((known - known.mean()) ** 2))
        numbers[target] = {
            "mae": float(np.abs(predicted[target] - known).mean()),
            "mae_of_mean": float(np.abs(train.targets[target].mean() - known).mean()),
            "r2": 1.0 - float(np.mean((predicted[target] - known) ** 2)) / spread,
        }
    report(numbers, len(crystals), json_path=values.json)
    return 0


def report(numbers: dict[str, dict[str, float]], count: int, *, json_path: str) -> None:
    """Print the table and write the JSON."""
    table = Table(title=f"prediction of {count} crystals")
    for column in ("target", "MAE", "MAE of the training set's mean", "R2"):
        table.add_column(column)
    for target, values in numbers.items():
        table.add_row(target, *(f"{values[k]:.4g}" for k in ("mae", "mae_of_mean", "r2")))
    Console().print(table)
    if json_path:
        Path(json_path).write_text(json.dumps({"num_crystals": count, **numbers}, indent=2))


if __name__ == "__main__":
    cli.run(main)
