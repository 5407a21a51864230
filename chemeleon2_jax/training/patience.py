"""Host-side watchers of a validation value: early stopping and the plateau scheduler.

Their states are JSON-able and saved with every checkpoint.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from chemeleon2_jax.common.errors import SettingsError
from chemeleon2_jax.training.config import EarlyStoppingConfig, FitConfig, SchedulerConfig


@dataclass(frozen=True)
class Patience:
    """Best value so far, and validations since.

    Attributes:
        mode: 'min' or 'max'.
        relative, absolute: an improvement is by more than relative * |best| + absolute.
        best: None before the first value.
        num_bad: validations in a row without an improvement; a NaN is no improvement.
    """

    mode: str
    relative: float = 0.0
    absolute: float = 0.0
    best: float | None = None
    num_bad: int = 0

    def update(self, value: float) -> "Patience":
        """Return the state after one more validation."""
        if math.isnan(value):
            return replace(self, num_bad=self.num_bad + 1)
        if self.best is None:
            return replace(self, best=value, num_bad=0)
        gain = self.best - value if self.mode == "min" else value - self.best
        if gain > self.relative * abs(self.best) + self.absolute:
            return replace(self, best=value, num_bad=0)
        return replace(self, num_bad=self.num_bad + 1)

    def to_json(self) -> dict[str, Any]:
        """Return what changes during a run."""
        return {"best": self.best, "num_bad": self.num_bad}

    def from_json(self, saved: dict[str, Any]) -> "Patience":
        """Return this watcher in a saved state."""
        return replace(self, best=saved["best"], num_bad=saved["num_bad"])


def monitored_names(config: FitConfig, *, default: str) -> dict[str, str]:
    """Return the values that a run watches, by the setting that names them.

    Args:
        config: settings of the run.
        default: the stage's, which chooses the best checkpoint.
    """
    names = {"callbacks.model_checkpoint.monitor": default}
    if config.early_stopping.patience:
        names["callbacks.early_stopping.monitor"] = config.early_stopping.monitor or default
    if config.scheduler.name == "plateau":
        names["scheduler.monitor"] = config.scheduler.monitor or default
    return names


def check_monitored(names: Mapping[str, str], known: Iterable[str]) -> None:
    """Check that all watched values are among those of a validation.

    Raises:
        SettingsError: one is not; the text has the setting and the values there are.
    """
    there = list(known)
    for setting, name in names.items():
        if name not in there:
            raise SettingsError(
                f"{setting} is {name!r}, which is none of the validation's values: "
                f"{', '.join(there)}"
            )


def early_stopping(config: EarlyStoppingConfig, *, mode: str) -> Patience:
    """Return the watcher of early stopping; `mode` is the stage's."""
    return Patience(mode=config.mode or mode, absolute=config.min_delta)


def plateau(config: SchedulerConfig, *, mode: str) -> Patience:
    """Return the watcher of the plateau scheduler; `mode` is the stage's."""
    return Patience(mode=config.mode or mode, relative=config.threshold)


def reduce_on_plateau(
    watcher: Patience, lr_scale: float, *, config: SchedulerConfig, learning_rate: float
) -> tuple[Patience, float]:
    """Return the watcher and the factor on the learning rate after a validation.

    As in PyTorch: the rate falls when there were more than `patience` bad validations in a row,
    and the count starts again.
    """
    if watcher.num_bad <= config.patience:
        return watcher, lr_scale
    lowest = min(lr_scale, config.min_lr / learning_rate) if learning_rate else 0.0
    return replace(watcher, num_bad=0), max(lr_scale * config.factor, lowest)
