"""The lines that report a training step or a validation."""

from collections.abc import Mapping, Sequence

from tqdm import tqdm

from chemeleon2_jax.training.progress import Progress

WIDTH = 80
"""Most columns of a line on the console."""

_LABEL_WIDTH = 20
_ROUNDING_ERROR = 1e-12  # a mean of numbers that cancel


def all_values(values: Mapping[str, float]) -> str:
    """Return all values, for the log file."""
    return " ".join(f"{name}={_number(value, digits=5)}" for name, value in values.items())


def step_line(
    step: int,
    values: Mapping[str, float],
    *,
    total_steps: int | None,
    shown: Mapping[str, str],
    seconds_left: float | None = None,
) -> str:
    """Return the line of a training step on the console, at most `WIDTH` columns.

    Args:
        step: steps done.
        values: `loss`, `lr`, the stage's, perhaps `crystals_per_second`.
        total_steps: length of the run; None: no limit.
        shown: name -> label of the stage's values to show, as many as fit.
        seconds_left: estimated time to the end of the run; None: unknown.
    """
    head = [f"step {step}" if total_steps is None else f"step {step}/{total_steps}"]
    head.append(f"loss {_number(values['loss'])}")
    tail = []
    if "crystals_per_second" in values:
        tail.append(f"{_short(values['crystals_per_second'])} crystals/s")
    if seconds_left is not None:
        tail.append(f"ETA {tqdm.format_interval(seconds_left)}")
    rate = f"lr {_number(values['lr'], digits=3)}"
    return _join(head, [*_labelled(values, shown), rate], tail)


def validation_line(
    progress: Progress, *, best: Progress | None, shown: Mapping[str, str], seconds: float
) -> str:
    """Return the line of a validation on the console, at most `WIDTH` columns.

    Args:
        progress: with the values of the validation.
        best: progress at the best validation, this one included; None: no value was finite.
        shown: name -> label of the values to show beside the monitored one, as many as fit.
        seconds: duration of the validation.
    """
    values, monitor = progress.values, progress.monitor
    head = [f"validation at step {progress.step}"]
    label = shown.get(monitor, monitor.rpartition("/")[2])
    (monitored,) = _labelled(values, {monitor: label})
    if best is not None:
        is_best = best.step == progress.step
        assert best.score is not None
        monitored += " (best)" if is_best else f" (best {_number(best.score)} at {best.step})"
    head.append(monitored)
    others = {name: label for name, label in shown.items() if name != monitor}
    return _join(head, _labelled(values, others), [f"{seconds:.1f} s"])


def _labelled(values: Mapping[str, float], shown: Mapping[str, str]) -> list[str]:
    return [
        f"{label[:_LABEL_WIDTH]} {_number(values[name])}"
        for name, label in shown.items()
        if name in values
    ]


def _join(head: Sequence[str], optional: Sequence[str], tail: Sequence[str] = ()) -> str:
    """Join the entries of `head`, and those of `tail` and then the optional ones that fit."""

    def fits(entries: Sequence[str]) -> bool:
        return len("  ".join(entries)) <= WIDTH

    while tail and not fits([*head, *tail]):
        tail = tail[1:]
    chosen: list[str] = []
    for entry in optional:
        if fits([*head, *chosen, entry, *tail]):
            chosen.append(entry)
    return "  ".join([*head, *chosen, *tail])[:WIDTH]


def _number(value: float, *, digits: int = 4) -> str:
    """Return some digits of a number; 0 for a rounding error."""
    return "0" if abs(value) < _ROUNDING_ERROR else f"{value:.{digits}g}"


def _short(number: float) -> str:
    """Return three digits, with k, M, ... for thousands, as in 1.53k."""
    return tqdm.format_sizeof(number) if 1e3 <= number < 1e15 else f"{number:.3g}"
