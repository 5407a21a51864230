"""The lines that are watched: one of at most 100 columns for a step and for a validation."""

import logging
import math
from pathlib import Path

import pytest
from toy_stage import toy_stage, validation_from

from chemeleon2_jax.common.console import ON_CONSOLE
from chemeleon2_jax.training.config import FitConfig
from chemeleon2_jax.training.loop import fit
from chemeleon2_jax.training.progress import Progress
from chemeleon2_jax.training.report_lines import WIDTH, all_values, step_line, validation_line

VALUES = {
    "loss": 0.402149,
    "loss_kl": 45.9,
    "reward/reward": 1e-17,
    "reward/raw_reward": 1.25,
    "kl_rollout": 0.00123456,
    "lr": 1e-4,
    "crystals_per_second": 812.3,
    "useful_token_share": 0.97,
}
SHOWN = {"reward/raw_reward": "reward", "kl_rollout": "KL", "val/valid_share": "valid"}


def test_a_step_shows_what_the_stage_chose_and_nothing_more() -> None:
    line = step_line(1200, VALUES, total_steps=50_000, shown=SHOWN, seconds_left=3753.0)
    assert line == ("step 1200/50000  loss 0.4021  reward 1.25  812 crystals/s  ETA 1:02:33")
    assert len(line) <= 80
    line = step_line(1200, VALUES, total_steps=None, shown=SHOWN)
    assert line == ("step 1200  loss 0.4021  reward 1.25  KL 0.001235  lr 0.0001  812 crystals/s")
    values = {"loss": 0.5, "lr": 0.0}
    assert step_line(7, values, total_steps=None, shown=SHOWN) == "step 7  loss 0.5  lr 0"


@pytest.mark.parametrize("number", [-1.23456e-05, -1.23456e300, math.nan, math.inf, 123456.7])
@pytest.mark.parametrize("label", ["x", "formation_energy_per_atom_of_the_relaxed_cell"])
def test_lines_are_never_wider(number: float, label: str) -> None:
    steps = 2_000_000_000
    values = dict.fromkeys(VALUES, number)
    shown = dict.fromkeys(VALUES, label)
    line = step_line(steps, values, total_steps=steps, shown=shown, seconds_left=9e6)
    assert len(line) <= WIDTH == 80
    assert line.startswith("step 2000000000/2000000000  loss ")
    assert line.endswith("ETA 2500:00:00")
    progress = Progress(step=steps, monitor=f"val/{label}")
    progress = progress.after_validation({f"val/{label}": number, **values}, state={})
    best = Progress(step=steps - 1, score=-1.23456e-05)
    line = validation_line(progress, best=best, shown=shown, seconds=86_400.0)
    assert len(line) <= 80
    assert line.startswith("validation at step 2000000000  ")
    assert "best -1.235e-05" in line


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0.0123, "0.0123"), (9.5, "9.5"), (999.4, "999"), (1530.0, "1.53k"), (2.1e6, "2.10M")],
)
def test_rates_have_three_digits(rate: float, text: str) -> None:
    values = {"loss": 1.0, "lr": 1.0, "crystals_per_second": rate}
    line = step_line(1, values, total_steps=None, shown={})
    assert f"  {text} crystals/s" in line


def test_what_does_not_fit_is_left_out_from_the_end() -> None:
    shown = {f"name_{index}": f"label_{index}" for index in range(9)}
    values = VALUES | dict.fromkeys(shown, -1.23456e-05)
    line = step_line(1200, values, total_steps=50_000, shown=shown, seconds_left=60.0)
    assert "  label_0 -1.235e-05  " in line
    assert "label_1" not in line
    assert line.endswith("  812 crystals/s  ETA 01:00")


def test_rounding_errors_are_zero() -> None:
    values = VALUES | {"loss": -3e-17, "lr": 0.0}
    shown = {"reward/reward": "reward"}
    line = step_line(1, values, total_steps=None, shown=shown)
    assert line == "step 1  loss 0  reward 0  lr 0  812 crystals/s"
    assert "reward/reward=0 " in all_values(VALUES)


def test_a_validation_says_whether_it_is_the_best() -> None:
    values = {"val/total_loss": 0.5, "val/valid_share": 0.93, "val/other": 1.0}
    progress = Progress(step=1200, monitor="val/total_loss").after_validation(values, state={})
    line = validation_line(progress, best=progress, shown=SHOWN, seconds=3.21)
    assert line == "validation at step 1200  total_loss 0.5 (best)  valid 0.93  3.2 s"
    best = Progress(step=800, monitor="val/total_loss", score=0.381234)
    line = validation_line(progress, best=best, shown=SHOWN, seconds=3.21)
    assert "  total_loss 0.5 (best 0.3812 at 800)  valid 0.93  " in line


def test_a_validation_without_a_finite_value() -> None:
    progress = Progress(step=4, monitor="val/mae").after_validation({"val/mae": math.nan}, state={})
    line = validation_line(progress, best=None, shown={"val/mae": "MAE"}, seconds=1.0)
    assert line == "validation at step 4  MAE nan  1.0 s"


def test_the_log_keeps_all_values_and_the_console_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = toy_stage(validate=validation_from([2.0, 1.0, 3.0]), shown={"abs_error": "error"})
    config = FitConfig(max_steps=6, check_val_every_n_steps=2, log_every_n_steps=2)
    with caplog.at_level(logging.INFO):
        fit(stage, config, run_dir=tmp_path)
    lines = [
        (record.getMessage(), record.on_console)
        for record in caplog.records
        if hasattr(record, ON_CONSOLE)
    ]
    steps, validations = lines[0::2], lines[1::2]
    for (message, console), step in zip(steps, (2, 4, 6), strict=True):
        assert message.startswith(f"step {step}/6 loss=")
        for name in ("abs_error", "grad_norm", "lr", "crystals_per_second", "useful_token_share"):
            assert f" {name}=" in message
        assert console.startswith(f"step {step}/6  loss ")
        assert "  error " in console
        assert "grad_norm" not in console
    assert "ETA" in steps[0][1]
    for (message, _), value in zip(validations, (2, 1, 3), strict=True):
        assert message.endswith(f"val/total_loss={value}")
    verdicts = [
        console.partition("total_loss")[2].rpartition("  ")[0] for _, console in validations
    ]
    assert verdicts == [" 2 (best)", " 1 (best)", " 3 (best 1 at 4)"]
