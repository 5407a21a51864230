import json
import logging
import math
import os
import re
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_stage import (
    ToyBatches,
    arrays_of,
    loss_fn,
    same_trees,
    step_folders,
    toy_stage,
    validate,
    validation_from,
    validation_values,
)

from chemeleon2_jax.common.errors import CheckpointError, NonFiniteError, SettingsError
from chemeleon2_jax.training.checkpoint_reader import open_checkpoint
from chemeleon2_jax.training.config import (
    EarlyStoppingConfig,
    FitConfig,
    OptimizerConfig,
    SchedulerConfig,
)
from chemeleon2_jax.training.interrupts import Interrupts
from chemeleon2_jax.training.loop import fit
from chemeleon2_jax.training.result import FitResult
from chemeleon2_jax.training.stage import Validation
from chemeleon2_jax.training.step import make_train_step

OPTIMIZER = OptimizerConfig(lr=0.01, weight_decay=0.01)


def settings(**changes: Any) -> FitConfig:
    values: dict[str, Any] = {
        "optimizer": OPTIMIZER,
        "ema_decay": 0.9,
        "gradient_clip_val": 1.0,
        "log_every_n_steps": 2,
        "seed": 5,
    }
    return FitConfig(**{**values, **changes})


def same_states(first: FitResult, second: FitResult) -> bool:
    return same_trees(arrays_of(first.state), arrays_of(second.state))


def validated_steps(run_dir: Path) -> list[int]:
    events = EventAccumulator(str(run_dir)).Reload()
    return [event.step for event in events.Scalars("val/total_loss")]


@pytest.mark.parametrize(
    "scheduler",
    [
        SchedulerConfig(),
        SchedulerConfig(name="cosine", warmup_steps=2, decay_steps=4),
    ],
)
def test_four_steps_are_two_and_restore_and_two(tmp_path: Path, scheduler: SchedulerConfig) -> None:
    whole = fit(toy_stage(), settings(max_steps=4, scheduler=scheduler), run_dir=tmp_path / "a")
    half = fit(toy_stage(), settings(max_steps=2, scheduler=scheduler), run_dir=tmp_path / "b")
    rest = fit(
        toy_stage(),
        settings(max_steps=4, scheduler=scheduler),
        run_dir=tmp_path / "b",
        resume=True,
    )
    assert (whole.step, half.step, rest.step) == (4, 2, 4)
    assert same_states(whole, rest)
    assert not same_states(whole, half)


def test_checkpoint_is_the_state_and_holds_what_the_stage_adds(tmp_path: Path) -> None:
    result = fit(toy_stage(), settings(max_epochs=1), run_dir=tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.step == result.step == 4
    assert checkpoint.meta == {"hidden": 16, "size_table": [0, 1, 2]}
    assert checkpoint.items == ("ema", "params", "train", "vae")
    assert same_trees(checkpoint.restore("params", result.state.params), result.state.params)
    assert same_trees(checkpoint.restore("ema"), result.state.ema_params)
    assert checkpoint.progress.values == result.values
    assert checkpoint.progress.score == result.values["val/total_loss"]
    # Validated are the averaged parameters.
    assert result.values == validation_values(result.state.ema_params)


def test_learns_and_shapes_may_change(tmp_path: Path) -> None:
    stage = toy_stage(batches=ToyBatches(alternate=True))
    config = settings(max_steps=150, check_val_every_n_epoch=10, save_every_n_steps=0)
    result = fit(stage, config, run_dir=tmp_path)
    start = validation_values(stage.init_params)
    assert result.values["val/total_loss"] < 0.5 * start["val/total_loss"]


def test_finished_run_resumed_does_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = settings(max_steps=3)
    first = fit(toy_stage(), config, run_dir=tmp_path)
    files = sorted(tmp_path.rglob("*"))
    stage = toy_stage(batches=ToyBatches(fail_at=3), validate=validation_from([]))
    with caplog.at_level(logging.INFO):
        again = fit(stage, config, run_dir=tmp_path, resume=True)
    assert "the run is finished at step 3" in caplog.text
    assert (again.status, again.exit_code, again.step) == ("finished", 0, 3)
    assert same_states(first, again)
    assert sorted(tmp_path.rglob("*")) == files


def test_run_folder_without_a_checkpoint_starts_at_step_0(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step_7.orbax-checkpoint-tmp").mkdir(parents=True)
    result = fit(toy_stage(), settings(max_steps=2), run_dir=tmp_path, resume=True)
    assert result.step == 2
    assert step_folders(tmp_path) == ["step_2"]


def test_new_run_does_not_write_over_checkpoints(tmp_path: Path) -> None:
    fit(toy_stage(), settings(max_steps=1), run_dir=tmp_path)
    with pytest.raises(CheckpointError, match="already holds checkpoints"):
        fit(toy_stage(), settings(max_steps=2), run_dir=tmp_path)


def test_resuming_another_model_is_an_error(tmp_path: Path) -> None:
    fit(toy_stage(), settings(max_steps=1), run_dir=tmp_path)
    other = toy_stage(init_params={"out": np.ones(3, np.float32)})
    with pytest.raises(CheckpointError, match="does not fit the model"):
        fit(other, settings(max_steps=2), run_dir=tmp_path, resume=True)


def test_validates_by_epoch_and_at_the_end_and_keeps_the_best(tmp_path: Path) -> None:
    config = settings(max_steps=18, check_val_every_n_epoch=2, save_every_n_steps=3)
    stage = toy_stage(validate=validation_from([3.0, 1.0, 2.0]))
    result = fit(stage, config, run_dir=tmp_path)
    assert validated_steps(tmp_path) == [8, 16, 18]
    assert result.best_step == 16
    assert step_folders(tmp_path) == ["step_16", "step_18"]


def test_validates_by_steps_and_before_the_first_one(tmp_path: Path) -> None:
    config = settings(max_steps=7, check_val_every_n_steps=3, save_every_n_steps=0)
    stage = toy_stage(validate=validation_from([1.0, 3.0, 2.0, 4.0]), validate_first=True)
    result = fit(stage, config, run_dir=tmp_path)
    assert validated_steps(tmp_path) == [0, 3, 6, 7]
    # Training made it worse: the start is the best.
    assert result.best_step == 0
    assert step_folders(tmp_path) == ["step_0", "step_7"]
    fit(stage, config, run_dir=tmp_path, resume=True)
    assert validated_steps(tmp_path) == [0, 3, 6, 7]  # not once more


def test_a_validation_hands_its_state_to_the_next_also_over_a_resume(tmp_path: Path) -> None:
    def drawing(params: Any, state: Any) -> Validation:
        pictures = {"toy": np.zeros((4, 4, 3), np.uint8)}
        return replace(validate(params, state), pictures=pictures)

    stage = toy_stage(validate=drawing, validation_state={"count": 5})
    config = settings(max_steps=4, check_val_every_n_steps=2)
    fit(stage, config, run_dir=tmp_path)
    assert open_checkpoint(tmp_path).progress.validation_state == {"count": 7}
    fit(stage, replace(config, max_steps=6), run_dir=tmp_path, resume=True)
    last = open_checkpoint(tmp_path / "checkpoints" / "last")
    assert last.progress.validation_state == {"count": 8}
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Images("toy")] == [2, 4, 6]


def test_a_save_before_the_next_validation_keeps_the_state_of_an_old_run(tmp_path: Path) -> None:
    """Old checkpoints hold the state elsewhere: the stage reads it, and the next save has it."""
    stage = replace(toy_stage(), validate=None, validation_state={"floors": {"volume": -3.0}})
    fit(stage, settings(max_steps=2), run_dir=tmp_path)
    progress_file = tmp_path / "checkpoints" / "step_2" / "progress" / "metadata"
    saved = json.loads(progress_file.read_text())
    assert saved.pop("validation_state") == stage.validation_state
    progress_file.write_text(json.dumps(saved))
    fit(stage, settings(max_steps=3), run_dir=tmp_path, resume=True)
    # The next stage need not know it any more.
    again = replace(stage, validation_state={})
    fit(again, settings(max_steps=4), run_dir=tmp_path, resume=True)
    kept = open_checkpoint(tmp_path / "checkpoints" / "last").progress
    assert (kept.step, kept.validation_state) == (4, stage.validation_state)


def two_updates(updater: Any, mesh: Any) -> Any:
    """A step of two updates, that of `toy_stage` twice, with a picture of the fourth step."""
    step = make_train_step(loss_fn, updater, mesh=mesh)

    def twice(state: Any, frozen: Any, batch: Any) -> Any:
        state, _ = step(state, frozen, batch)
        state, metrics = step(state, frozen, batch)
        if int(state.step) % 6 == 0:  # of every third step
            metrics = {**metrics, "sometimes": 6.0}
        fourth = int(state.step) == 8
        return state, metrics, {"toy": np.zeros((4, 4, 3), np.uint8)} if fourth else {}

    return twice


def test_a_step_may_be_several_updates(tmp_path: Path) -> None:
    scheduler = SchedulerConfig(name="cosine")
    config = settings(max_steps=6, log_every_n_steps=6, scheduler=scheduler)
    stage = toy_stage(loss_fn=None, make_step=two_updates, updates_per_step=2)
    whole = fit(stage, config, run_dir=tmp_path / "whole")
    assert (whole.step, int(whole.state.step)) == (6, 12)
    events = EventAccumulator(str(tmp_path / "whole")).Reload()
    assert [event.step for event in events.Images("toy")] == [4]
    # The schedule counts updates; a metric that a step lacks was 0 there.
    expected = 0.5 * (1 + np.cos(np.pi * 11 / 12)) * config.optimizer.lr
    assert events.Scalars("train/lr")[-1].value == pytest.approx(expected, rel=1e-4)
    assert events.Scalars("train/sometimes")[-1].value == pytest.approx(6.0 * 2 / 6)
    halves = tmp_path / "halves"
    fit(stage, replace(config, max_steps=3, scheduler=SchedulerConfig()), run_dir=halves)
    resumed = fit(stage, replace(config, scheduler=SchedulerConfig()), run_dir=halves, resume=True)
    again = fit(stage, replace(config, scheduler=SchedulerConfig()), run_dir=tmp_path / "again")
    assert same_trees(arrays_of(resumed.state), arrays_of(again.state))


def test_a_stage_has_one_kind_of_step() -> None:
    for changes in ({"loss_fn": None}, {"make_step": two_updates}):
        with pytest.raises(ValueError, match="either a loss_fn or a make_step"):
            toy_stage(**changes)


def test_without_validation_the_last_is_kept(tmp_path: Path) -> None:
    config = settings(max_steps=5, save_every_n_steps=2)
    result = fit(toy_stage(validate=None), config, run_dir=tmp_path)
    assert (result.values, result.best_step) == ({}, None)
    assert step_folders(tmp_path) == ["step_5"]


WRONG_MONITORS = [
    ("callbacks.model_checkpoint", "val/accuracy", {}),
    (
        "callbacks.early_stopping",
        "val/total_loss",
        {"early_stopping": EarlyStoppingConfig(patience=2, monitor="val/accuracy")},
    ),
    (
        "scheduler",
        "val/total_loss",
        {"scheduler": SchedulerConfig(name="plateau", monitor="val/accuracy")},
    ),
]


@pytest.mark.parametrize(("block", "monitor", "changes"), WRONG_MONITORS)
def test_wrong_monitor_is_found_before_training(
    tmp_path: Path, block: str, monitor: str, changes: dict[str, Any]
) -> None:
    message = f"{block}.monitor is 'val/accuracy', .*: val/total_loss, val/other$"
    with pytest.raises(SettingsError, match=message):
        fit(toy_stage(monitor=monitor), settings(max_steps=5, **changes), run_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
    fit(toy_stage(monitor=monitor, validate=None), settings(max_steps=1), run_dir=tmp_path)


def test_on_start_is_called_once_the_state_is_there(tmp_path: Path) -> None:
    started: list[str] = []
    fit(toy_stage(), settings(max_steps=1), run_dir=tmp_path, on_start=lambda: started.append("a"))
    other = toy_stage(init_params={"out": np.ones(3, np.float32)})
    with pytest.raises(CheckpointError):
        fit(
            other,
            settings(max_steps=2),
            run_dir=tmp_path,
            resume=True,
            on_start=lambda: started.append("b"),
        )
    assert started == ["a"]


def test_early_stopping_counts_validations_also_over_a_resume(tmp_path: Path) -> None:
    values = [3.0, 2.0, 2.5, 2.6, 2.7, 0.1]
    early = EarlyStoppingConfig(patience=3)
    config = settings(max_epochs=50, early_stopping=early)
    whole = fit(toy_stage(validate=validation_from(values)), config, run_dir=tmp_path / "whole")
    assert (whole.status, whole.step, whole.best_step) == ("early_stopped", 20, 8)

    cut = settings(max_epochs=3, early_stopping=early)
    fit(toy_stage(validate=validation_from(values)), cut, run_dir=tmp_path / "cut")
    stage = toy_stage(validate=validation_from(values[3:]))
    rest = fit(stage, config, run_dir=tmp_path / "cut", resume=True)
    assert (rest.status, rest.step, rest.best_step) == ("early_stopped", 20, 8)
    assert same_states(whole, rest)
    again = fit(stage, config, run_dir=tmp_path / "cut", resume=True)
    assert (again.status, again.step) == ("early_stopped", 20)


def test_plateau_resumes_exactly(tmp_path: Path) -> None:
    values = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    scheduler = SchedulerConfig(name="plateau", factor=0.5, patience=1)
    config = settings(max_epochs=6, scheduler=scheduler)
    whole = fit(toy_stage(validate=validation_from(values)), config, run_dir=tmp_path / "whole")
    # Bad validations 2 and 3 lower the rate, and so do 4 and 5.
    assert float(whole.state.lr_scale) == 0.25
    cut = settings(max_epochs=4, scheduler=scheduler)
    half = fit(toy_stage(validate=validation_from(values)), cut, run_dir=tmp_path / "cut")
    assert float(half.state.lr_scale) == 0.5
    stage = toy_stage(validate=validation_from(values[4:]))
    rest = fit(stage, config, run_dir=tmp_path / "cut", resume=True)
    assert same_states(whole, rest)


def test_not_a_number_is_named_with_its_step_and_never_saved(tmp_path: Path) -> None:
    stage = toy_stage(batches=ToyBatches(nan_at=6), validate=None)
    config = settings(max_steps=50, log_every_n_steps=50, save_every_n_steps=3)
    with pytest.raises(NonFiniteError, match=r"step 7: .*loss.* not finite") as caught:
        fit(stage, config, run_dir=tmp_path)
    assert caught.value.step == 7
    assert {"loss", "grad_norm"} <= set(caught.value.names)
    assert str(tmp_path / "checkpoints" / "step_6") in str(caught.value)
    assert step_folders(tmp_path) == ["step_6"]
    assert all(
        np.isfinite(x).all() for x in jax.tree.leaves(open_checkpoint(tmp_path).restore("params"))
    )


def test_parameters_that_overflow_are_not_saved(tmp_path: Path) -> None:
    config = settings(max_steps=1, optimizer=OptimizerConfig(lr=math.inf))
    with pytest.raises(NonFiniteError, match=r"step 1: .*params not finite; this run has no"):
        fit(toy_stage(validate=None), config, run_dir=tmp_path)
    assert step_folders(tmp_path) == []


def test_broken_batch_is_raised_in_the_loop(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="batch 3 is broken"):
        fit(toy_stage(batches=ToyBatches(fail_at=3)), settings(max_steps=9), run_dir=tmp_path)


class SignallingBatches(ToyBatches):
    """Sends a signal to this process when the batch of step 4 is made."""

    def __init__(self, number: int) -> None:
        super().__init__()
        object.__setattr__(self, "number", number)

    def batch(self, step: int) -> Any:
        if step == 4:
            os.kill(os.getpid(), self.number)  # type: ignore[attr-defined]
        return super().batch(step)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_and_the_resumed_run_is_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, number: signal.Signals, exit_code: int
) -> None:
    config = settings(max_steps=10)
    whole = fit(toy_stage(), config, run_dir=tmp_path / "whole")
    before = signal.getsignal(number)
    stopped = fit(
        toy_stage(batches=SignallingBatches(number)), config, run_dir=tmp_path / "stopped"
    )
    assert signal.getsignal(number) is before
    assert (stopped.status, stopped.exit_code) == ("interrupted", exit_code)
    assert 1 <= stopped.step < 10
    assert f"--config.resume_from={tmp_path / 'stopped'}" in caplog.text
    assert open_checkpoint(tmp_path / "stopped" / "checkpoints" / "last").step == stopped.step
    rest = fit(toy_stage(), config, run_dir=tmp_path / "stopped", resume=True)
    assert (rest.status, rest.step, rest.best_step) == ("finished", 10, whole.best_step)
    assert same_states(whole, rest)


@pytest.mark.parametrize("max_steps", [4, 6])
def test_signal_in_a_validation_ends_it_and_it_is_made_up_for(
    tmp_path: Path, max_steps: int
) -> None:
    def interrupted(params: Any, state: Any) -> Validation:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        return validate(params, state)

    config = settings(max_steps=max_steps)
    whole = fit(toy_stage(), config, run_dir=tmp_path / "whole")
    start = time.monotonic()
    stopped = fit(toy_stage(validate=interrupted), config, run_dir=tmp_path / "stopped")
    assert time.monotonic() - start < 30
    assert (stopped.status, stopped.step, stopped.values) == ("interrupted", 4, {})
    rest = fit(toy_stage(), config, run_dir=tmp_path / "stopped", resume=True)
    assert (rest.status, rest.values, rest.best_step) == (
        "finished",
        whole.values,
        whole.best_step,
    )
    assert same_states(whole, rest)


def test_second_interrupt_is_immediate() -> None:
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGINT)
        assert interrupts.stop_after(1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_first_lines_say_what_it_runs_on_and_how_long_compiling_took(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        fit(toy_stage(), settings(max_steps=2), run_dir=tmp_path)
    lines = [r.getMessage() for r in caplog.records if "chemeleon2_jax" in r.pathname]
    assert re.fullmatch(r"1 x cpu \(\d+ cores\), f32, 8 crystals a step", lines[0])
    assert lines[1].startswith("step 1 is done: ")
    assert lines[2].startswith("step 2/2 loss=")
    assert "crystals_per_second" in lines[2]
    assert lines[3].startswith("step 2 validation")
    assert not [r for r in caplog.records if "orbax" in r.pathname]


def test_no_thread_makes_batches_after_the_run(tmp_path: Path) -> None:
    config = settings(early_stopping=EarlyStoppingConfig(patience=1))
    fit(toy_stage(validate=validation_from([1.0, 2.0])), config, run_dir=tmp_path)
    assert "prefetch" not in [thread.name for thread in threading.enumerate()]
