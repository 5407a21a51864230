"""Skipped rows of a run's data."""

import logging

import pytest

from chemeleon2_jax.common import hosts
from chemeleon2_jax.common.errors import HostError
from chemeleon2_jax.data.datasets import NUM_LISTED, SkippedRow, load_split
from chemeleon2_jax.runs import command_line as cli
from chemeleon2_jax.stages.data import load_data, load_splits
from tests.tiny import BROKEN_ID, make_crystals, vae_config, write_split


def test_every_skipped_row_is_in_the_log_and_few_on_the_console(
    tmp_path, capsys, caplog, monkeypatch
):
    write_split(tmp_path / "train.csv", make_crystals(), broken_row=3)
    write_split(tmp_path / "val.csv", make_crystals()[:12])
    config = vae_config(tmp_path, data={"max_atoms": 4})
    skipped = load_split("", "train", data_dir=tmp_path, max_atoms=4).skipped
    assert len(skipped) > 2 * NUM_LISTED
    root = logging.getLogger()
    # Through setLevel, as the command line does: loggers remember what was enabled.
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(root, "handlers", [])
    cli.log_to_console()
    with cli.log_file(tmp_path / "train.log"):
        load_data(config, edges=False)
    written, printed = (tmp_path / "train.log").read_text(), capsys.readouterr().err
    assert skipped[0].material_id == BROKEN_ID
    for number, row in enumerate(skipped):
        assert written.count(f"  {row.describe()}\n") == 1
        assert (row.describe() in printed) == (number < NUM_LISTED)
    assert f"{tmp_path}/train.csv: all skipped rows are listed in the run's train.log" in printed
    assert f"{tmp_path}/val.csv: all skipped" not in printed


@pytest.fixture
def beside_another_host(monkeypatch):
    """Set what another process says in `hosts.gather`, {type of the value: value or function}."""

    def say(**answers):
        def gather(value):
            answer = answers.get(type(value).__name__, value)
            return [value, answer(value) if callable(answer) else answer]

        monkeypatch.setattr(hosts, "gather", gather)

    monkeypatch.setattr(hosts, "count", lambda: 2)
    monkeypatch.setattr(hosts, "index", lambda: 0)
    monkeypatch.setattr(hosts, "describe", lambda process: f"process {process} on host-{process}")
    return say


def test_a_row_that_another_host_gave_up_is_left_out_here_too(tmp_path, beside_another_host):
    write_split(tmp_path / "train.csv", make_crystals(), broken_row=3)
    write_split(tmp_path / "val.csv", make_crystals()[:4])
    alone = load_split("", "train", data_dir=tmp_path).crystals
    slow = SkippedRow("train.csv", 2, "train-1", "timeout: 30 s")
    beside_another_host(tuple=lambda own: (slow, *own))
    train, _ = load_splits(vae_config(tmp_path))
    assert len(train) == len(alone) - 1
    assert set(alone.material_ids) - set(train.material_ids) == {b"train-1"}


def test_other_data_on_another_host_are_named(tmp_path, beside_another_host):
    write_split(tmp_path / "train.csv", make_crystals())
    write_split(tmp_path / "val.csv", make_crystals()[:4])
    beside_another_host(dict=lambda own: dict.fromkeys(own, "other"))
    with pytest.raises(HostError, match=r"rows in the train set .* and other in process 1 on"):
        load_splits(vae_config(tmp_path))
    # As many rows, but other positions.
    beside_another_host(dict=lambda own: own | {n: "0" for n in own if n.startswith("geometry")})
    with pytest.raises(HostError, match=r"the same geometry of the train set \(.*train.csv\)"):
        load_splits(vae_config(tmp_path))
