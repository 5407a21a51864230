"""What a run remembers, as JSON, and when it validates, saves and logs."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from chemeleon2_jax.training.cadence import Cadence
from chemeleon2_jax.training.config import EarlyStoppingConfig, FitConfig
from chemeleon2_jax.training.progress import Progress, Watch, best_of

# As checkpoints of version 0.1.0 hold it.
EARLIER = {
    "epoch": 1,
    "validated_step": 4,
    "values": {"val/total_loss": 0.5, "val/other": 1.0},
    "early_stopping": {"best": 0.25, "num_bad": 2},
    "plateau": {"best": None, "num_bad": 0},
    "step": 4,
    "monitor": "val/total_loss",
    "mode": "min",
    "score": 0.5,
    "metrics": {"val/total_loss": 0.5, "val/other": 1.0},
}


def test_through_json() -> None:
    progress = Progress(step=7, monitor="val/r2", mode="max", early_stopping=Watch(0.5, 3))
    progress = progress.after_validation({"val/r2": 0.75}, state={"floors": {"volume": -1.0}})
    assert (progress.score, progress.is_validated) == (0.75, True)
    assert Progress.from_json(json.loads(json.dumps(progress.to_json()))) == progress


def test_an_earlier_version_s_is_read() -> None:
    assert Progress.from_json(EARLIER) == Progress(
        step=4,
        monitor="val/total_loss",
        score=0.5,
        validated_step=4,
        values={"val/total_loss": 0.5, "val/other": 1.0},
        early_stopping=Watch(0.25, 2),
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"step": "4"},
        {"mode": "least"},
        {"score": [1.0]},
        {"plateau": None},
        {"early_stopping": {"patience": 1}},
    ],
)
def test_what_is_no_progress_is_an_error(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no entry|step|score"):
        Progress.from_json(EARLIER | changes)
    with pytest.raises(ValueError, match="no entry"):
        Progress.from_json({"step": 4, "score": 0.5})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_no_score(value: float) -> None:
    progress = Progress(monitor="val").after_validation({"val": value}, state={})
    assert progress.score is None


def test_best_is_the_later_of_equals() -> None:
    candidates = [Progress(step=s, score=v) for s, v in ((1, 2.0), (2, 1.0), (3, 1.0), (4, None))]
    assert best_of(None, *candidates) == candidates[2]
    largest = best_of(*(replace(candidate, mode="max") for candidate in candidates))
    assert largest.step == 1
    assert best_of(None, candidates[3]) is None


def cadence(**changes: Any) -> Cadence:
    return Cadence.from_config(FitConfig(**changes), steps_per_epoch=4, validates=True)


def steps_of(due: Any) -> list[int]:
    return [step for step in range(1, 13) if due(step)]


def test_epochs_are_counted_in_steps() -> None:
    by_epoch = cadence(max_steps=11, check_val_every_n_epoch=2)
    assert steps_of(lambda n: by_epoch.validation_due(Progress(step=n))) == [8, 11]
    by_steps = cadence(max_epochs=3, check_val_every_n_epoch=2, check_val_every_n_steps=5)
    assert steps_of(lambda n: by_steps.validation_due(Progress(step=n))) == [5, 10, 12]


def test_saved_and_logged_at_intervals_and_at_the_end() -> None:
    run = cadence(max_steps=11, save_every_n_steps=0, log_every_n_steps=5)
    assert steps_of(run.save_due) == [11]
    assert steps_of(run.log_due) == [5, 10, 11]
    assert steps_of(cadence(save_every_n_steps=5).save_due) == [5, 10]  # without an end


def test_a_validation_is_due_once_and_before_the_first_step_where_asked_for() -> None:
    run = cadence(max_steps=8)
    assert not run.validation_due(Progress(step=0))
    assert run.validation_due(Progress(step=0, validated_step=-1))
    assert run.validation_due(Progress(step=3, validated_step=-1))  # a signal cut the first short
    assert not run.validation_due(Progress(step=8, validated_step=8))
    without = Cadence.from_config(FitConfig(max_steps=8), steps_per_epoch=4, validates=False)
    assert not without.validation_due(Progress(step=8))


def test_finished_at_the_end_with_its_validation_or_out_of_patience() -> None:
    run = cadence(max_steps=8, early_stopping=EarlyStoppingConfig(patience=2))
    assert not run.finished(Progress(step=7, validated_step=4))
    assert not run.finished(Progress(step=8, validated_step=4))
    assert run.finished(Progress(step=8, validated_step=8))
    assert run.finished(Progress(step=4, early_stopping=Watch(1.0, 2)))
    assert not run.finished(Progress(step=4, early_stopping=Watch(1.0, 1)))
    assert not cadence(max_steps=8).finished(Progress(step=4, early_stopping=Watch(1.0, 2)))
