r"""Measure the rows of docs/results.md: train, sample and evaluate with the real commands.

    python launch/reproduce.py --data_dir=<folder with perov-5/, mp-20-bt/, ...> --dry_run
    python launch/reproduce.py --data_dir=<folder> --rows=perov-5,mp-20-bt --seeds=0,1,2
    python launch/reproduce.py --rows=structure-types --max_steps=20 --num_samples=16 \
        --work_dir=outputs/trial --results=outputs/trial/results.md       # a trial, in minutes

Every command runs once, in a folder of its own under --work_dir: a script that was stopped goes on
where it was when it is started again with the same flags, also within a training. The table holds
all rows and seeds that are whole, of this and of earlier calls. Rows that need a GPU are left out
where JAX finds none.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from absl import flags, logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.common.suggest import did_you_mean
from chemeleon2_jax.runs import command_line as cli
from launch.reproduction_report import Result, write_results
from launch.reproduction_rows import EMBEDDED, ROWS, Request, Row, run_row
from launch.reproduction_state import CommandError, NotDoneError, Runner

FLAGS = flags.FLAGS
flags.DEFINE_list("rows", [], f"Rows to run; default: all: {', '.join(r.name for r in ROWS)}.")
flags.DEFINE_list("seeds", ["0"], "Seeds of training and sampling, each a line of the table.")
flags.DEFINE_string("data_dir", "", "Folder of the data sets: <data_dir>/perov-5/train.csv.gz, ...")
flags.DEFINE_string("work_dir", "outputs/reproduce", "Folder of runs, samples and state.")
flags.DEFINE_string("results", "docs/results.md", "File of the table; pictures go beside it.")
flags.DEFINE_integer("max_steps", 0, "Training steps, for a trial; 0: the recipes'.", lower_bound=0)
flags.DEFINE_integer("num_samples", 0, "Crystals, for a trial; 0: the recipes'.", lower_bound=0)
flags.DEFINE_bool("dry_run", False, "Print the commands, and whether each is done.")


def main() -> int:
    """Run the rows and write the table."""
    rows, seeds = _read_rows(FLAGS.rows), _read_seeds(FLAGS.seeds)
    _check_data(rows)
    if FLAGS.dry_run:
        for row in rows:
            for seed in seeds:
                print(f"# {row.name}, seed {seed}" + ", on a GPU" * row.recipe.needs_gpu)
                run_row(_request(row, seed), _runner(row, seed, "plan"))
        return 0
    failures = []
    for row in _that_can_run(rows):
        for seed in seeds:
            try:
                run_row(_request(row, seed), _runner(row, seed, "run"))
            except CommandError as error:  # the other rows need not wait for it
                failures.append(f"{row.name}, seed {seed}")
                logging.error("%s, seed %d: %s", row.name, seed, error)
            write_results(_whole_results(seeds), _results_file())
    if failures:
        raise ConfigError(f"not whole: {'; '.join(failures)}; see above")
    logging.info("The table is in %s", _results_file())
    return 0


def _check_data(rows: list[Row]) -> None:
    """Check that the data are there, before the first row takes its minutes."""
    needed = sorted({row.data for row in rows} - set(EMBEDDED))
    if needed and not FLAGS.data_dir:
        raise ConfigError(f"give --data_dir, the folder that holds {', '.join(needed)}")
    for name in needed:
        folder = Path(FLAGS.data_dir) / name
        if not folder.is_dir():
            raise ConfigError(f"--data_dir: there is no folder {folder}")


def _results_file() -> Path:
    """Return the file of the table. A trial does not replace the project's own."""
    if FLAGS["results"].using_default_value and (FLAGS.max_steps or FLAGS.num_samples):
        return Path(FLAGS.work_dir) / "results.md"
    return Path(FLAGS.results)


def _read_rows(names: list[str]) -> list[Row]:
    known = {row.name: row for row in ROWS}
    for name in names:
        if name not in known:
            hint = did_you_mean(name, list(known))
            raise ConfigError(f"--rows: {name!r} is unknown.{hint} There are: {', '.join(known)}")
    return [known[name] for name in names] or list(ROWS)


def _read_seeds(texts: list[str]) -> list[int]:
    if not texts or not all(text.isdecimal() for text in texts):
        raise ConfigError(f"--seeds is {','.join(texts)!r}; give integers, as in 0,1,2")
    return sorted({int(text) for text in texts})


def _request(row: Row, seed: int) -> Request:
    folder = Path(FLAGS.data_dir).absolute()
    return Request(row, seed, folder, max_steps=FLAGS.max_steps, num_samples=FLAGS.num_samples)


def _runner(row: Row, seed: int, mode: str) -> Runner:
    return Runner(Path(FLAGS.work_dir).absolute() / row.name / f"seed{seed}", mode)


def _that_can_run(rows: list[Row]) -> list[Row]:
    if not any(row.recipe.needs_gpu for row in rows) or _has_gpu():
        return rows
    for row in rows:
        if row.recipe.needs_gpu:
            logging.warning("%s needs a GPU, and JAX finds none: left out", row.name)
    return [row for row in rows if not row.recipe.needs_gpu]


def _has_gpu() -> bool:
    # In a process of its own: this one would keep the device's memory.
    code = "import jax; print(jax.default_backend())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return found.stdout.strip() == "gpu"


def _whole_results(seeds: list[int]) -> list[Result]:
    """Read all rows that are done, of these seeds and of those with a folder."""
    results = []
    for row in ROWS:
        names = [path.name[4:] for path in (Path(FLAGS.work_dir) / row.name).glob("seed*")]
        for seed in sorted({*seeds, *(int(name) for name in names if name.isdecimal())}):
            request = _request(row, seed)
            try:
                results.append(Result(request, run_row(request, _runner(row, seed, "read"))))
            except NotDoneError:
                continue
    return results


if __name__ == "__main__":
    cli.run(main)
