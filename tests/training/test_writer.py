import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_stage import toy_stage

from chemeleon2_jax.training.config import FitConfig, WandbConfig
from chemeleon2_jax.training.loop import fit
from chemeleon2_jax.training.writer import open_writers

event_accumulator = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator",
    reason="reading events back needs the package tensorboard",
)


def read(directory: Path) -> Any:
    events = event_accumulator.EventAccumulator(str(directory))
    events.Reload()
    return events


def test_scalars_pictures_and_texts_are_read_back(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[1, 2] = 255
    with open_writers(tmp_path, wandb=WandbConfig(), config_text='{"seed": 0}') as writers:
        writers.scalars({"train/loss": 1.5, "train/lr": 1e-4}, step=10)
        writers.scalars({"train/loss": 0.5}, step=20)
        writers.image("crystals", pixels, step=20)
    events = read(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(10, 1.5), (20, 0.5)]
    assert events.Scalars("train/lr")[0].value == pytest.approx(1e-4)
    picture = events.Images("crystals")[0]
    assert (picture.width, picture.height, picture.step) == (6, 4, 20)
    (text,) = events.Tensors("config/text_summary")[0].tensor_proto.string_val
    assert text == b'```json\n{"seed": 0}\n```'


def test_resumed_run_shows_every_step_once(tmp_path: Path) -> None:
    def config(max_steps: int) -> FitConfig:
        return FitConfig(max_steps=max_steps, log_every_n_steps=1, keep_best=9)

    fit(toy_stage(), config(7), run_dir=tmp_path, config_text="{}")
    # As if killed at step 7: the steps after the checkpoint of step 4 are trained again.
    (tmp_path / "checkpoints" / "step_7").rename(tmp_path / "away")
    fit(toy_stage(), config(9), run_dir=tmp_path, resume=True)
    events = read(tmp_path)
    assert [e.step for e in events.Scalars("train/loss")] == list(range(1, 10))
    for name in ("lr", "grad_norm", "abs_error", "crystals_per_second", "useful_token_share"):
        assert events.Scalars(f"train/{name}")
    assert [e.step for e in events.Scalars("val/total_loss")] == [4, 8, 9]
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 2


def test_full_disk_ends_the_events_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writers = open_writers(tmp_path, wandb=WandbConfig())
    writer = writers._writers[0]
    writer._events._py_recordio_writer._writer.close()
    writer._events._py_recordio_writer._writer = open("/dev/full", "wb")  # noqa: SIM115
    for step in range(3):
        writers.scalars({"loss": 1.0}, step=step)
    writers.close()
    assert caplog.text.count("TensorBoard events end here") == 1


class FakeWandb(types.ModuleType):
    """Records the calls of the package."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.calls: list[Any] = []

    def init(self, **options: Any) -> "FakeWandb":
        self.calls.append(options)
        return self

    def log(self, values: dict[str, Any], *, step: int) -> None:
        self.calls.append((values, step))

    def Image(self, pixels: np.ndarray) -> tuple[int, ...]:
        return pixels.shape

    def finish(self) -> None:
        self.calls.append("finish")


def test_wandb_gets_the_same_and_a_resume_goes_on_in_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = WandbConfig(project="crystals", group="vae", tags=("a", "b"))
    options = []
    for _ in range(2):
        fake = FakeWandb()
        monkeypatch.setitem(sys.modules, "wandb", fake)
        with open_writers(tmp_path, wandb=config, config_text='{"seed": 3}') as writers:
            writers.scalars({"loss": 1.0}, step=3)
            writers.image("grid", np.zeros((2, 2, 3), np.uint8), step=3)
        assert fake.calls[1:] == [({"loss": 1.0}, 3), ({"grid": (2, 2, 3)}, 3), "finish"]
        options.append(fake.calls[0])
    assert options[0] == options[1]
    assert options[0]["project"] == "crystals"
    assert options[0]["name"] == tmp_path.name
    assert options[0]["group"] == "vae"
    assert options[0]["tags"] == ["a", "b"]
    assert options[0]["resume"] == "allow"
    assert options[0]["config"] == {"seed": 3}


def test_wandb_asked_for_and_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install wandb"):
        open_writers(tmp_path, wandb=WandbConfig(project="crystals"))


def test_real_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with open_writers(tmp_path, wandb=WandbConfig(project="crystals", tags=("a",))) as writers:
        writers.scalars({"loss": 1.0}, step=1)
        writers.image("grid", np.zeros((8, 8, 3), np.uint8), step=1)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
