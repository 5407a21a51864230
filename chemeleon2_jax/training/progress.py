"""The progress of a run, as its checkpoints hold it beside the arrays."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from chemeleon2_jax.training.config import MODES


@dataclass(frozen=True)
class Watch:
    """History of a validation value that early stopping or the plateau scheduler watches.

    Attributes:
        best: None before the first value.
        num_bad: number of successive validations without an improvement.
    """

    best: float | None = None
    num_bad: int = 0


@dataclass(frozen=True)
class Progress:
    """State of the training loop on the host.

    Attributes:
        step: steps done.
        monitor, mode: validation value that ranks checkpoints, and 'min' or 'max'.
        score: that value, if this step was validated and the value is finite; else None.
        validated_step: step of the last validation; -1: one is due before the first step.
        values: of the last validation; {} before the first.
        validation_state: state for the next validation, from the last one or from the stage; None
            in checkpoints of earlier versions.
        early_stopping, plateau: histories of their values.
    """

    step: int = 0
    monitor: str = ""
    mode: str = "min"
    score: float | None = None
    validated_step: int = 0
    values: Mapping[str, float] = field(default_factory=dict)
    validation_state: Mapping[str, Any] | None = None
    early_stopping: Watch = field(default_factory=Watch)
    plateau: Watch = field(default_factory=Watch)

    @property
    def is_validated(self) -> bool:
        """Whether the values are of this step."""
        return self.step == self.validated_step

    def after_validation(
        self, values: Mapping[str, float], *, state: Mapping[str, Any]
    ) -> "Progress":
        """Return the progress with values and state of a validation at this step."""
        values = {name: float(value) for name, value in values.items()}
        score = values[self.monitor]
        return replace(
            self,
            values=values,
            validation_state=state,
            validated_step=self.step,
            score=score if math.isfinite(score) else None,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> "Progress":
        """Read the result of `to_json`.

        Checkpoints of earlier versions lack `validation_state` and have entries beside the fields.

        Raises:
            ValueError: an entry is missing or of a wrong type.
        """
        entries = {"validation_state": None, **saved}
        try:
            entries["early_stopping"] = Watch(**saved["early_stopping"])
            entries["plateau"] = Watch(**saved["plateau"])
            progress = cls(**{known.name: entries[known.name] for known in fields(cls)})
        except (KeyError, TypeError) as error:
            raise ValueError(f"no entry {error}") from error
        if not isinstance(progress.step, int) or progress.mode not in MODES:
            raise ValueError(f"step {progress.step!r} and mode {progress.mode!r}")
        if not isinstance(progress.score, int | float | None):
            raise ValueError(f"score {progress.score!r}")
        return progress


def best_of(*candidates: Progress | None) -> Progress | None:
    """Return the progress with the best score, the later of equals; None without a score."""

    def rank(progress: Progress) -> tuple[float, int]:
        assert progress.score is not None
        return -progress.score if progress.mode == "min" else progress.score, progress.step

    scored = [p for p in candidates if p is not None and p.score is not None]
    return max(scored, key=rank, default=None)
