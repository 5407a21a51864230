"""When a run validates, saves, logs and ends."""

from dataclasses import dataclass

from chemeleon2_jax.training.config import FitConfig
from chemeleon2_jax.training.progress import Progress


@dataclass(frozen=True)
class Cadence:
    """Intervals in steps; 0 is 'only at the end'.

    Attributes:
        total_steps: length of the run; None: no limit.
        validate_every, save_every, log_every: intervals.
        patience: number of successive validations without an improvement that end the run; 0: no
            number does.
        validates: whether the stage has a validation.
    """

    total_steps: int | None
    validate_every: int
    save_every: int
    log_every: int
    patience: int = 0
    validates: bool = True

    @classmethod
    def from_config(cls, config: FitConfig, *, steps_per_epoch: int, validates: bool) -> "Cadence":
        """Convert epochs into steps."""
        by_epoch = config.check_val_every_n_epoch * steps_per_epoch
        return cls(
            total_steps=config.total_steps(steps_per_epoch),
            validate_every=config.check_val_every_n_steps or by_epoch,
            save_every=config.save_every_n_steps,
            log_every=config.log_every_n_steps,
            patience=config.early_stopping.patience,
            validates=validates,
        )

    def validation_due(self, progress: Progress) -> bool:
        """Return whether to validate before the next step.

        A validation that a signal interrupted remains due.
        """
        if not self.validates or progress.step == progress.validated_step:
            return False
        if progress.validated_step < 0:  # the stage's `validate_first`
            return True
        return self._at_interval(progress.step, self.validate_every)

    def save_due(self, step: int) -> bool:
        """Return whether to save after this step, with or without a validation."""
        return self._at_interval(step, self.save_every)

    def log_due(self, step: int) -> bool:
        """Return whether to fetch and log the metrics after this step."""
        return self._at_interval(step, self.log_every)

    def reached_end(self, step: int) -> bool:
        """Return whether all steps of the run are done."""
        return self.total_steps is not None and step >= self.total_steps

    def finished(self, progress: Progress) -> bool:
        """Return whether nothing is left to do."""
        if self.patience and progress.early_stopping.num_bad >= self.patience:
            return True
        return self.reached_end(progress.step) and not self.validation_due(progress)

    def _at_interval(self, step: int, every: int) -> bool:
        return step == self.total_steps or (every > 0 and step % every == 0)
