"""Skipped rows of a run's data."""

import logging

from chemeleon2_jax.data.datasets import NUM_LISTED, load_split
from chemeleon2_jax.runs import command_line as cli
from chemeleon2_jax.stages.data import load_data
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
