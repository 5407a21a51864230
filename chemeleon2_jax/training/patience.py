"""Patience with a validation value that does not improve: early stopping, plateau scheduler."""

import math
from dataclasses import dataclass, replace

from chemeleon2_jax.common.errors import SettingsError
from chemeleon2_jax.training.config import FitConfig
from chemeleon2_jax.training.progress import Progress, Watch
from chemeleon2_jax.training.stage import Stage


@dataclass(frozen=True)
class Patience:
    """Definition of an improvement: by more than relative * |best| + absolute.

    Attributes:
        mode: 'min' or 'max'.
        relative, absolute: see above.
    """

    mode: str
    relative: float = 0.0
    absolute: float = 0.0

    def update(self, watch: Watch, value: float) -> Watch:
        """Return the history after one more validation; NaN is no improvement."""
        if watch.best is None:
            improved = not math.isnan(value)
        else:
            gain = watch.best - value if self.mode == "min" else value - watch.best
            improved = gain > self.relative * abs(watch.best) + self.absolute
        return Watch(value) if improved else replace(watch, num_bad=watch.num_bad + 1)


def check_monitored(config: FitConfig, stage: Stage) -> None:
    """Check that all values that the run watches are among those of the validation.

    Raises:
        SettingsError: one is not; the text names the setting and the values.
    """
    names = {"callbacks.model_checkpoint.monitor": stage.monitor}
    if config.early_stopping.patience:
        names["callbacks.early_stopping.monitor"] = config.early_stopping.monitor or stage.monitor
    if config.scheduler.name == "plateau":
        names["scheduler.monitor"] = config.scheduler.monitor or stage.monitor
    for setting, name in names.items():
        if name not in stage.value_names:
            raise SettingsError(
                f"{setting} is {name!r}, which is not among the values of the validation: "
                f"{', '.join(stage.value_names)}"
            )


def watch_validation(
    progress: Progress, lr_scale: float, *, config: FitConfig
) -> tuple[Progress, float]:
    """Update early stopping and the plateau scheduler with the values of a validation.

    As in PyTorch, the rate falls after more than `patience` successive validations without an
    improvement, and the count restarts.

    Args:
        progress: with the values of the validation.
        lr_scale: present factor on the learning rate.
        config: settings of the run.

    Returns:
        The progress with both histories updated, and the next factor.
    """
    values, stopping, scheduler = progress.values, config.early_stopping, config.scheduler
    if stopping.patience:
        rule = Patience(stopping.mode or progress.mode, absolute=stopping.min_delta)
        watch = rule.update(progress.early_stopping, values[stopping.monitor or progress.monitor])
        progress = replace(progress, early_stopping=watch)
    if scheduler.name == "plateau":
        rule = Patience(scheduler.mode or progress.mode, relative=scheduler.threshold)
        watch = rule.update(progress.plateau, values[scheduler.monitor or progress.monitor])
        if watch.num_bad > scheduler.patience:
            watch = replace(watch, num_bad=0)
            rate = config.optimizer.lr
            lowest = min(lr_scale, scheduler.min_lr / rate) if rate else 0.0
            lr_scale = max(lr_scale * scheduler.factor, lowest)
        progress = replace(progress, plateau=watch)
    return progress, lr_scale
