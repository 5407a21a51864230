"""Settings of a training run, as frozen structs: a ConfigDict is known to the stages alone."""

from dataclasses import dataclass, field

OPTIMIZERS = ("adamw", "adam", "nadamw", "lamb", "lion", "adan", "muon")
SCHEDULERS = ("constant", "warmup_linear", "cosine", "plateau")
MODES = ("min", "max")
PRECISIONS = {"f32": "float32", "bf16": "bfloat16"}
"""Name -> dtype in which a model computes; its parameters are float32."""


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser, by its name in optax.

    Attributes:
        name: one of `OPTIMIZERS`. `muon` orthogonalises the updates of matrices (Jordan et al.
            2024), scaled to the size of AdamW's so that it takes its learning rates (Liu et al.
            2025); other parameters have NAdamW.
        lr: learning rate.
        weight_decay: decoupled, but an L2 term in adam.
        beta1, beta2, eps: decays of the moments, and the term that keeps a division finite. Muon
            takes them for NAdamW's part; adan and lion ignore eps, and adan has decays of its own.
    """

    name: str = "adamw"
    lr: float = 1e-4
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown name or a value out of range."""
        if self.name not in OPTIMIZERS:
            raise ValueError(f"optimizer {self.name!r} is none of {', '.join(OPTIMIZERS)}")
        if not (0.0 <= self.beta1 < 1.0 and 0.0 <= self.beta2 < 1.0):
            raise ValueError(f"optimizer betas are in [0, 1), not {self.beta1} and {self.beta2}")
        if self.lr < 0.0 or self.eps <= 0.0 or self.weight_decay < 0.0:
            raise ValueError(f"optimizer values out of range: {self}")


@dataclass(frozen=True)
class SchedulerConfig:
    """Learning rate over the run, as a factor on the optimiser's learning rate.

    Attributes:
        name: 'constant'; 'warmup_linear' (a synonym); 'cosine' (down to `final_factor` at
            `decay_steps`); 'plateau' (times `factor` when the monitored validation value has not
            improved for more than `patience` validations).
        warmup_steps: length of a linear warm-up, with every name; step t (from 0) has the factor
            (t + 1) / warmup_steps.
        decay_steps: end of the cosine; 0: the end of the run.
        final_factor: factor at the end of the cosine.
        factor, patience, threshold, min_lr: of the plateau; an improvement is larger than
            `threshold` relative to the best value, and `min_lr` is the lowest rate.
        monitor, mode: of the plateau; '' is the stage's.
    """

    name: str = "constant"
    warmup_steps: int = 0
    decay_steps: int = 0
    final_factor: float = 0.0
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    min_lr: float = 0.0
    monitor: str = ""
    mode: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown name or a value out of range."""
        if self.name not in SCHEDULERS:
            raise ValueError(f"scheduler {self.name!r} is none of {', '.join(SCHEDULERS)}")
        if self.warmup_steps < 0 or self.decay_steps < 0:
            raise ValueError(f"scheduler steps are 0 or more: {self}")
        if self.name == "plateau" and not 0.0 < self.factor < 1.0:
            raise ValueError(f"scheduler factor is between 0 and 1, not {self.factor}")
        _check_mode(self.mode, "scheduler")


@dataclass(frozen=True)
class EarlyStoppingConfig:
    """Stop after `patience` validations (0: never) without an improvement by `min_delta`.

    An empty `monitor` or `mode` is the stage's.
    """

    patience: int = 0
    monitor: str = ""
    mode: str = ""
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError for an unknown mode."""
        _check_mode(self.mode, "early_stopping")


def _check_mode(mode: str, block: str) -> None:
    if mode not in ("", *MODES):
        raise ValueError(f"{block}.mode {mode!r} is none of {', '.join(MODES)}")


@dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases beside TensorBoard; off without a project."""

    project: str = ""
    name: str = ""
    group: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class FitConfig:
    """Settings of `loop.fit`; 0 means no limit, or off.

    Attributes:
        seed: of all random numbers of the training.
        max_steps, max_epochs: length of the run, whichever comes first.
        check_val_every_n_epoch: epochs between validations; the end of the run has one, too.
        check_val_every_n_steps: steps between validations; where not 0, it replaces the epochs.
        save_every_n_steps: steps between checkpoints; every validation is saved, too.
        log_every_n_steps: steps between log lines, for which the host waits for the device.
        gradient_clip_val: largest global norm of the gradient.
        precision: of the model's computations, for the log: the stage's functions have it.
        ema_decay: of the exponential moving average of the parameters, after its warm-up.
        keep_best: number of best checkpoints to keep, beside the last one.
        num_devices: number of local devices to use, the first ones.
    """

    seed: int = 0
    max_steps: int = 0
    max_epochs: int = 0
    check_val_every_n_epoch: int = 1
    check_val_every_n_steps: int = 0
    save_every_n_steps: int = 1000
    log_every_n_steps: int = 50
    gradient_clip_val: float = 0.0
    precision: str = "f32"
    ema_decay: float = 0.0
    keep_best: int = 1
    num_devices: int = 0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    early_stopping: EarlyStoppingConfig = field(default_factory=EarlyStoppingConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of range."""
        for name in (
            "max_steps",
            "max_epochs",
            "check_val_every_n_epoch",
            "check_val_every_n_steps",
            "save_every_n_steps",
            "gradient_clip_val",
            "num_devices",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it is 0 (off) or more")
        if self.log_every_n_steps < 1 or self.keep_best < 1:
            raise ValueError("log_every_n_steps and keep_best are 1 or more")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r} is none of {', '.join(PRECISIONS)}")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay is {self.ema_decay}; it is in [0, 1), 0 is off")

    def total_steps(self, steps_per_epoch: int) -> int | None:
        """Return the length of the run in steps; None without a limit."""
        limits = [n for n in (self.max_steps, self.max_epochs * steps_per_epoch) if n > 0]
        return min(limits, default=None)
