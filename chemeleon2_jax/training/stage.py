"""What a stage hands to the training loop."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from chemeleon2_jax.rows.batch import BatchSource
from chemeleon2_jax.training.config import MODES

PyTree = Any
Metrics = dict[str, jax.Array]
LossFn = Callable[[PyTree, PyTree, jax.Array, PyTree], tuple[jax.Array, Metrics]]
Pictures = Mapping[str, np.ndarray]
StepFn = Callable[[Any, PyTree, PyTree], tuple[Any, Mapping[str, Any], Pictures]]
ItemsFn = Callable[[PyTree, PyTree | None], Mapping[str, PyTree]]


def params_and_ema(params: PyTree, ema_params: PyTree | None) -> dict[str, PyTree]:
    """Return the items of every checkpoint: `params`, and `ema` where EMA is on."""
    return {"params": params} if ema_params is None else {"params": params, "ema": ema_params}


@dataclass(frozen=True)
class Validation:
    """Result of a validation; the same in every process.

    Attributes:
        values: numbers by name, e.g. 'val/total_loss'.
        pictures: (height, width, 3) uint8 by name.
        state: JSON-able; the next validation receives it, also after a resume.
    """

    values: Mapping[str, float]
    pictures: Pictures = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)


ValidateFn = Callable[[PyTree, Mapping[str, Any]], Validation]


@dataclass(frozen=True)
class Stage:
    """A model and its data, ready to be trained by `loop.fit`.

    Attributes:
        name: for logs, e.g. 'train_vae'.
        init_params: trainable parameters at step 0, any pytree of arrays.
        loss_fn: pure `(params, frozen, key, batch) -> (loss, metrics)`, where `batch` is the pytree
            of `Batch.arrays` as global arrays and `metrics` holds scalars by name. A mean is a sum
            over the global batch divided by its sum of weights. None with `make_step`.
        batches: training batches.
        meta: JSON-able description of the model, saved with every checkpoint.
        frozen: pytree of untrained arrays that the loss needs.
        validate: `(params, state) -> Validation`, called with the EMA parameters where EMA is on
            and the state of the validation before. None: no validation.
        validation_state: state for the first validation of a run, or of a run resumed from a
            checkpoint without such a state.
        monitor: name of the validation value that ranks checkpoints.
        mode: 'min' or 'max': which value of `monitor` is better.
        value_names: names of the values of a validation, to check monitors before training.
        items: `(params, ema_params or None) -> trees to save by name`. Must return `params` and
            `ema` unchanged (a run resumes from them) and may add others, e.g. a frozen `vae`.
        make_step: `(updater, mesh) -> step`, for a step of more than one gradient of `loss_fn`:
            `(state, frozen, batch) -> (state, metrics, pictures)`, which donates the state.
        updates_per_step: parameter updates of a step; learning rate schedules count updates.
        validate_first: validate before the first step, too.
        shown: name -> label of one or two values of a step, and of a validation ('val/...'), which
            the console shows beside the loss and the monitored value.
        examples: name -> value of a training crystal, as text, for each condition of a diffusion
            model: what the result can be asked for.
    """

    name: str
    init_params: PyTree
    loss_fn: LossFn | None
    batches: BatchSource
    meta: Mapping[str, Any]
    frozen: PyTree = field(default_factory=dict)
    validate: ValidateFn | None = None
    validation_state: Mapping[str, Any] = field(default_factory=dict)
    monitor: str = "val/total_loss"
    mode: str = "min"
    value_names: tuple[str, ...] = ()
    items: ItemsFn = params_and_ema
    make_step: Callable[[Any, Any], StepFn] | None = None
    updates_per_step: int = 1
    validate_first: bool = False
    shown: Mapping[str, str] = field(default_factory=dict)
    examples: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Validate `mode`; require exactly one of `loss_fn` and `make_step`."""
        if self.mode not in MODES:
            raise ValueError(f"Stage.mode is {self.mode!r}; it is {' or '.join(MODES)}")
        if (self.loss_fn is None) == (self.make_step is None):
            raise ValueError("a stage has either a loss_fn or a make_step")
