"""The script of the reference table: its state, its commands, its table."""

from __future__ import annotations

import json

import numpy as np
import pytest

from launch import curves
from launch.reproduction_report import Result, write_results
from launch.reproduction_rows import ROWS, Recipe, Request, Row, run_row
from launch.reproduction_state import CommandError, Done, NotDoneError, Runner
from tests.tiny import ROOT, run_script

WRITER = """
import pathlib, sys
folder = pathlib.Path(sys.argv[-1].partition("=")[2])
with (folder / "calls").open("a") as file:
    file.write("x")
sys.exit(int((folder / "fail").exists()))
"""


@pytest.fixture
def script(tmp_path):
    """A command that counts its calls, and fails where its folder holds a file `fail`."""
    path = tmp_path / "writer.py"
    path.write_text(WRITER)
    return str(path)


def calls(done):
    return len((done.folder / "calls").read_text())


def test_a_command_runs_once(script, tmp_path):
    runner = Runner(tmp_path / "row")
    with pytest.raises(NotDoneError, match="write"):
        Runner(tmp_path / "row", "read").run("write", script, ["--seed=0"])
    done = runner.run("write", script, ["--seed=0"])
    again = runner.run("write", script, ["--seed=0"])
    assert again == done == Runner(tmp_path / "row", "read").run("write", script, ["--seed=0"])
    assert calls(done) == 1
    assert done.cpu_seconds > 0
    assert done.command == f"python {script} --seed=0 --output_dir={done.folder}"
    other = runner.run("write", script, ["--seed=1"])
    changed = runner.run("write", script, ["--seed=0"], config="another recipe")
    assert len({done.folder, other.folder, changed.folder}) == 3


def test_a_failed_command_runs_again_and_keeps_its_time(script, tmp_path):
    runner = Runner(tmp_path / "row")
    folder = runner.run("write", script, []).folder
    (folder / "done.json").unlink()
    (folder / "fail").touch()
    with pytest.raises(CommandError, match="ended with code 1"):
        runner.run("write", script, [])
    spent = json.loads((folder / "spent.json").read_text())["cpu_seconds"]
    (folder / "fail").unlink()
    done = runner.run("write", script, [])
    assert calls(done) == 3
    assert done.cpu_seconds > spent > 0


def test_a_stopped_training_is_resumed(tmp_path, monkeypatch):
    """With the run's own folder, and with the command without it on record."""
    commands = []
    monkeypatch.setattr(
        "launch.reproduction_state._run",
        lambda folder, command, arguments: commands.append(arguments) or Done(folder, command),
    )
    runner = Runner(tmp_path)
    first = runner.train("vae", "vae", "fast/vae_dng", ["--config.seed=0"])
    run = first.folder / "train_vae" / "runs" / "2026-01-01_00-00-00"
    run.mkdir(parents=True)
    (run / "config.json").touch()
    second = runner.train("vae", "vae", "fast/vae_dng", ["--config.seed=0"])
    assert second.run == run
    assert first.command == second.command
    assert commands[1] == [*commands[0], f"--config.resume_from={run}"]


def test_every_row_is_planned(tmp_path, capsys):
    """With experiments that exist, and inputs that lead from one command to the next."""
    for row in ROWS:
        run_row(Request(row, 3, tmp_path), Runner(tmp_path / row.name, "plan"))
        printed = capsys.readouterr().out
        assert all(line.startswith("[to do] python ") for line in printed.splitlines())
        for name in (row.recipe.vae, row.recipe.ldm, row.recipe.reinforce):
            assert name in printed
        assert "--config.seed=3" in printed
        assert not list(tmp_path.iterdir())


def test_wrong_flags_are_one_line():
    for flag, message in (
        ("--rows=perov5", "--rows: 'perov5' is unknown. Did you mean 'perov-5'?"),
        ("--seeds=0,x", "--seeds is '0,x'; give integers"),
        ("--rows=perov-5", "give --data_dir, the folder that holds perov-5"),
    ):
        done = run_script(ROOT / "launch" / "reproduce.py", flag)
        assert done.code == 1
        assert done.output.startswith(f"error: {message}"), done.output
        assert done.output.count("\n") == 1


def fake_result(folder, seed, *, valid):
    """A row whose commands wrote what the table needs."""
    names = ("vae", "ldm", "reconstruction", "sample", "sample_evaluate")
    done = {}
    for name in names:
        path = folder / f"seed{seed}" / name
        path.mkdir(parents=True)
        done[name] = Done(path, f"python {name} {path} {folder / 'data'}", cpu_seconds=90.0)
    (done["reconstruction"].folder / "reconstruction.json").write_text(
        json.dumps({"match_rate": {"rate": 0.9}})
    )
    (done["sample"].folder / "run.json").write_text(json.dumps({"num_samples": 50, "seconds": 2.0}))
    shares = {
        "valid": valid,
        "covalent": 0.5,
        "composition_valid": 0.25,
        "unique": 1.0,
        "novel": 0.75,
    }
    summary = {
        "metrics": {name: {"share": share} for name, share in shares.items()},
        "set": {
            "wasserstein_density": {"value": 0.125},
            "wasserstein_num_elements": {"value": None},
        },
    }
    (done["sample_evaluate"].folder / "summary.json").write_text(json.dumps(summary))
    return Result(Request(Row("small", "small", Recipe()), seed, folder / "data"), done)


def test_the_table_has_a_line_a_seed_and_their_mean(tmp_path):
    results = [fake_result(tmp_path, seed, valid=share) for seed, share in ((0, 0.8), (1, 1.0))]
    write_results(results, tmp_path / "docs" / "results.md")
    text = (tmp_path / "docs" / "results.md").read_text()
    line = (
        "| small | fast/vae_dng, fast/ldm_flow | 0 | 3 | 90.0 | 80.0 | 50.0 | 25.0 | 100.0 | 75.0 "
    )
    assert f"{line}| 25.0 | 0.125 | nan | 25 |" in text
    assert "| mean ± sd | 3 ± 0 | 90.0 ± 0.0 | 90.0 ± 14.1 |" in text
    assert "python ldm <work>/ldm <data>" in text
    assert str(tmp_path) not in text


def test_curve_by_size_of_the_cell(tmp_path):
    good = (np.array([11, 17]), np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]]), 4.0 * np.eye(3))
    crowded = (np.array([11, 17]), np.array([[0.0, 0, 0], [0.2, 0, 0]]), 4.0 * np.eye(3))
    sizes = np.array([2, 2, 8, 21])
    points = curves.measure(
        [good, crowded, good, crowded], sizes, sampler="euler", steps=4, seconds=1.0
    )
    shares = {point.sizes: (point.count, point.valid, point.covalent) for point in points}
    assert shares == {
        "all": (4, 1.0, 0.5),
        "1-4": (2, 1.0, 0.5),
        "5-8": (1, 1.0, 1.0),
        "over 20": (1, 1.0, 0.0),
    }
    assert "| euler | 5-8 | 1 | 100.0 |" in curves.as_table(points)
    curves.draw(points, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size
