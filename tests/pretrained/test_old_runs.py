"""Runs that version 0.1.0 wrote, before its checkpoints had a format version: they load and resume.

Each of `tests/fixtures/<stage>_run.tar.gz` is a run folder at step 2 of 4 on the crystals of
`tests.tiny.write_folder`, `<stage>_step_4.npz` the parameters that version ended with at step 4.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

import chemeleon2_jax as c2
from chemeleon2_jax import train
from chemeleon2_jax.training.checkpoint_reader import open_checkpoint
from tests.tiny import ROOT, by_name, make_config, make_crystals

FIXTURES = ROOT / "tests" / "fixtures"
STAGES = ("vae", "ldm")


def unpack(stage: str, folder: Path, data_dir: Path) -> Path:
    """The old run, on data that is here."""
    with tarfile.open(FIXTURES / f"{stage}_run.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    config = json.loads((folder / f"{stage}_run" / "config.json").read_text())
    config["data"]["data_dir"] = str(data_dir)
    (folder / f"{stage}_run" / "config.json").write_text(json.dumps(config))
    return folder / f"{stage}_run"


def arrays_of(run_dir: Path) -> dict[str, np.ndarray]:
    """Parameters and their averages in a run's last checkpoint."""
    last = open_checkpoint(run_dir / "checkpoints" / "last")
    items = [item for item in ("params", "ema") if item in last.items]
    return {f"{i}/{name}": a for i in items for name, a in by_name(last.restore(i)).items()}


def test_an_old_vae_encodes(tmp_path, tiny_data):
    vae = c2.load_model(unpack("vae", tmp_path, tiny_data))
    structures = make_crystals()[::8]
    means, logvars = vae.encode(structures)
    assert [z.shape for z in means] == [z.shape for z in logvars]
    assert [z.shape for z in means] == [(len(s), 8) for s in structures]
    assert np.isfinite(np.concatenate(means)).all()
    assert np.concatenate(means).std() > 0.1


def test_an_old_ldm_samples(tmp_path, tiny_data):
    ldm = c2.load_model(unpack("ldm", tmp_path, tiny_data))
    assert [condition.name for condition in ldm.conditions] == ["composition"]
    ldm.sample(conditions={"composition": ["NaCl", "SrTiO3"]}, steps=2, seed=0)
    assert ldm.last_report.num_atoms == (2, 5)
    assert len(ldm.last_report.indices) + len(ldm.last_report.failures) == 2


@pytest.mark.parametrize("stage", STAGES)
def test_an_old_run_resumes_as_if_it_had_never_stopped(stage, tmp_path, tiny_data):
    run_dir = unpack(stage, tmp_path, tiny_data)
    before = arrays_of(run_dir)
    overrides = {"resume_from": str(run_dir), "trainer.max_steps": 4}
    config = make_config(f"{ROOT}/configs/train_{stage}.py", overrides)
    assert train.train(train.make_plan(config, overrides)) == 0
    assert open_checkpoint(run_dir / "checkpoints" / "last").step == 4
    arrays = arrays_of(run_dir)
    expected = dict(np.load(FIXTURES / f"{stage}_step_4.npz"))
    assert arrays.keys() == before.keys() == expected.keys()
    # The same bits on the machine that wrote them. Others round differently; where a gradient is
    # zero but for rounding, Adam still takes a whole step: 5e-4 of the change without XLA's
    # optimisations.
    error, change = (
        np.sqrt(sum(np.sum((expected[name] - other[name]) ** 2) for name in expected))
        for other in (arrays, before)
    )
    assert error < 2e-3 * change
