import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_stage import step_folders

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.training.checkpoint_reader import open_checkpoint
from chemeleon2_jax.training.checkpoint_writer import CheckpointWriter
from chemeleon2_jax.training.progress import Progress

PARAMS = {"layers": [{"w": np.arange(6, dtype=np.float32).reshape(2, 3)}]}


def save(
    writer: CheckpointWriter,
    step: int,
    value: float | None,
    *,
    mode: str = "min",
    items: Any = None,
) -> None:
    progress = Progress(step=step, monitor="val", mode=mode)
    if value is not None:
        progress = progress.after_validation({"val": value, "other": 0.5}, state={})
    items = items or {"params": jax.tree.map(lambda x: x + step, PARAMS)}
    writer.save(progress, items=items, meta={"width": 3})


def links(run_dir: Path) -> dict[str, str]:
    directory = run_dir / "checkpoints"
    return {
        n: (directory / n).readlink().name for n in ("last", "best") if (directory / n).is_symlink()
    }


@pytest.mark.parametrize(("mode", "best"), [("min", 3), ("max", 6)])
def test_last_and_best_are_kept_also_over_a_restart(tmp_path: Path, mode: str, best: int) -> None:
    values = {1: 4.0, 2: 5.0, 3: 1.0, 4: None, 5: 2.0, 6: 6.0, 7: 3.0, 8: None}
    for part in (range(1, 5), range(5, 9)):
        with CheckpointWriter(tmp_path, monitor="val", mode=mode) as writer:
            for step in part:
                save(writer, step, values[step], mode=mode)
                assert writer.last_step == step
    assert step_folders(tmp_path) == [f"step_{best}", "step_8"]
    assert links(tmp_path) == {"last": "step_8", "best": f"step_{best}"}


def test_several_best(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, monitor="val", mode="min", keep_best=2) as writer:
        for step, value in enumerate([5.0, 1.0, 4.0, 2.0, 3.0], start=1):
            save(writer, step, value)
    assert step_folders(tmp_path) == ["step_2", "step_4", "step_5"]
    assert links(tmp_path) == {"last": "step_5", "best": "step_2"}


def test_without_links_files_say_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    with CheckpointWriter(tmp_path, monitor="val", mode="min") as writer:
        for step, value in enumerate([1.0, 2.0], start=1):
            save(writer, step, value)
    directory = tmp_path / "checkpoints"
    assert {name: (directory / name).read_text() for name in ("last", "best")} == {
        "last": "step_2\n",
        "best": "step_1\n",
    }
    assert open_checkpoint(directory / "last").step == 2
    assert open_checkpoint(directory / "best").step == 1
    assert open_checkpoint(tmp_path).step == 1


def test_undefined_value_is_never_the_best(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, monitor="val", mode="min") as writer:
        for step, value in enumerate([2.0, float("nan"), 3.0], start=1):
            save(writer, step, value)
        assert writer.best_step == 1
    assert step_folders(tmp_path) == ["step_1", "step_3"]


def test_opens_a_run_a_checkpoint_and_its_links(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, monitor="val", mode="min") as writer:
        save(writer, 1, 1.0)
        save(writer, 2, 2.0)
    directory = tmp_path / "checkpoints"
    opened = {
        name: open_checkpoint(path)
        for name, path in {
            "run": tmp_path,
            "folder": directory,
            "best": directory / "best",
            "last": directory / "last",
            "step": str(directory / "step_2"),
        }.items()
    }
    assert {name: c.step for name, c in opened.items()} == {
        "run": 1,
        "folder": 1,
        "best": 1,
        "last": 2,
        "step": 2,
    }
    assert opened["last"].meta == {"width": 3}
    assert opened["last"].items == ("params",)
    assert opened["last"].progress.values == {"val": 2.0, "other": 0.5}
    assert (opened["last"].progress.score, opened["last"].progress.mode) == (2.0, "min")
    plain = opened["last"].restore("params")
    assert isinstance(plain["layers"]["0"]["w"], np.ndarray)
    target = jax.eval_shape(lambda: jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), PARAMS))
    filled = opened["last"].restore("params", target)["layers"][0]["w"]
    np.testing.assert_array_equal(filled, PARAMS["layers"][0]["w"] + 2)
    assert filled.dtype == jnp.bfloat16


def test_links_are_not_trusted(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, monitor="val", mode="min") as writer:
        save(writer, 1, 1.0)
        save(writer, 2, 2.0)
    directory = tmp_path / "checkpoints"
    # As after a kill between the removal of an old checkpoint and the moving of the links.
    for name in ("last", "best"):
        (directory / name).unlink()
        (directory / name).symlink_to("step_0")
    assert open_checkpoint(directory / "last").step == 2
    assert open_checkpoint(directory / "best").step == 1
    assert open_checkpoint(tmp_path).step == 1
    with CheckpointWriter(tmp_path, monitor="val", mode="min") as writer:
        assert writer.last_step == 2
    assert links(tmp_path) == {"last": "step_2", "best": "step_1"}


def test_run_without_validation_opens_its_last(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, monitor="val", mode="min") as writer:
        save(writer, 1, None)
        save(writer, 2, None)
        assert writer.best_step is None
    assert links(tmp_path) == {"last": "step_2"}
    assert open_checkpoint(tmp_path).step == 2
    assert open_checkpoint(tmp_path / "checkpoints" / "best").step == 2


def test_copied_checkpoint_folder_opens_under_any_name(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "run", monitor="val", mode="min") as writer:
        save(writer, 1, 1.0)
    shutil.copytree(tmp_path / "run" / "checkpoints" / "best", tmp_path / "my model")
    assert open_checkpoint(tmp_path / "my model").restore("params").keys() == {"layers"}


def test_same_step_again_replaces_the_checkpoint(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, monitor="val", mode="min") as writer:
        save(writer, 1, None)
        save(writer, 1, 0.25)
        assert writer.best_step == 1
    assert step_folders(tmp_path) == ["step_1"]


def test_what_a_killed_process_left_is_tidied(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, monitor="val", mode="min") as writer:
        save(writer, 1, 1.0)
        save(writer, 2, 2.0)
    directory = tmp_path / "checkpoints"
    (directory / ".aside").mkdir()
    (directory / "step_2").rename(directory / ".aside" / "step_2")  # never replaced: put back
    shutil.copytree(directory / "step_1", directory / ".aside" / "step_1")  # replaced: thrown away
    shutil.copytree(directory / "step_1", directory / ".trash" / "step_0")
    shutil.copytree(directory / "step_1", directory / "step_3.orbax-checkpoint-tmp")
    with CheckpointWriter(tmp_path, monitor="val", mode="min") as writer:
        assert writer.last_step == 2
    assert step_folders(tmp_path) == ["step_1", "step_2"]


def damage(path: Path) -> None:
    """Cut every file with array data short."""
    for file in path.rglob("d/*"):
        file.write_bytes(file.read_bytes()[:10])


def no_meta(path: Path) -> None:
    (path / "meta" / "metadata").write_text("{ not json")


def no_object(path: Path) -> None:
    (path / "meta" / "metadata").write_text(json.dumps([1, 2]))


def no_mode(path: Path) -> None:
    (path / "progress" / "metadata").write_text(json.dumps({"step": 1, "score": 1.0}))


def no_item_metadata(path: Path) -> None:
    (path / "params" / "_METADATA").write_text("")


@pytest.mark.parametrize("breaking", [damage, no_meta, no_object, no_mode, no_item_metadata])
def test_broken_checkpoints_are_one_error(tmp_path: Path, breaking: Any) -> None:
    with CheckpointWriter(tmp_path, monitor="val", mode="min") as writer:
        save(writer, 1, 1.0)
    breaking(tmp_path / "checkpoints" / "step_1")
    with pytest.raises(CheckpointError, match="step_1"):
        open_checkpoint(tmp_path).restore("params")


def test_wrong_items_and_models_are_named(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, monitor="val", mode="min") as writer:
        save(writer, 1, 1.0)
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no item 'ema'; it has params"):
        checkpoint.restore("ema")
    with pytest.raises(
        CheckpointError, match=r"layers/0/w has shape \(2, 3\), the model has \(4,\)"
    ):
        checkpoint.restore("params", {"layers": [{"w": np.ones(4)}]})


def test_what_is_no_checkpoint_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for path, reason in [
        ("nowhere", "there is no"),
        ("file", "is a file"),
        ("run", "neither a run folder with a whole checkpoint"),
        (".", "nor a checkpoint folder"),
        ("run/checkpoints/last", "there is no"),
        ("file/below", "there is no"),
        ("x" * 300, "cannot be opened"),
    ]:
        with pytest.raises(CheckpointError, match=reason):
            open_checkpoint(tmp_path / path)


def test_failed_save_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, monitor="val", mode="min") as writer:
        save(writer, 1, 1.0)
        with pytest.raises(CheckpointError, match="could not be saved at step 2") as caught:
            save(writer, 2, 0.5, items={"params": {"w": object()}})
        assert "the last good checkpoint is" in str(caught.value)
        assert "step_1" in str(caught.value)
        assert f"--config.resume_from={tmp_path}" in str(caught.value)
        with pytest.raises(CheckpointError, match="saved at step 1"):  # moved aside, put back
            save(writer, 1, 0.5, items={"params": {"w": object()}})
    assert step_folders(tmp_path) == ["step_1"]
    assert links(tmp_path) == {"last": "step_1", "best": "step_1"}
    assert open_checkpoint(tmp_path).restore("params").keys() == {"layers"}


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the run folder should be")
    with pytest.raises(CheckpointError, match="opened for writing"):
        CheckpointWriter(tmp_path / "run", monitor="val", mode="min")
