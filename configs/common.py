"""Blocks that the stages' configs share, and how an experiment is laid over a base config.

Every value is a number, a bool or a string, so that each can be overridden on the command line and
the whole config is plain JSON. Absent is '' or 0; several names are one comma-separated string.
"""

import importlib
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from chemeleon2_jax.common.suggest import did_you_mean

_EXPERIMENTS = Path(__file__).parent / "experiment"


def base(task_name: str) -> ConfigDict:
    """What every run has."""
    config = ConfigDict()
    config.task_name = task_name
    config.experiment = ""  # set by with_experiment
    config.seed = 0
    config.resume_from = ""  # a run's folder: go on with that run
    config.paths = ConfigDict({"log_dir": "logs"})
    return config


def data(name: str, *, batch_size: int = 256) -> ConfigDict:
    """Where the crystals come from."""
    return ConfigDict(
        {
            "name": name,  # a named set; see the README
            "data_dir": "",  # a folder with train/val/test.csv[.gz]; beats `name`
            "batch_size": batch_size,  # crystals in a step, over all devices
            "target_condition": "",  # property columns to read
            "rename": "",  # "column in the file:name here", comma-separated
            "max_atoms": 0,  # skip larger crystals; 0 keeps all
            "num_workers": 0,  # processes that parse and match; 0 is one a CPU core, up to 16
        }
    )


def packing() -> ConfigDict:
    """How crystals are laid out in rows of tokens."""
    return ConfigDict(
        {
            "layout": "packed",  # or "padded": one crystal a row
            "row_tokens": 0,  # tokens in a row; 0 chooses from the sizes of the crystals
            "max_shapes": 5,  # programs that a run compiles at most; fewer waste more tokens
        }
    )


def trainer(max_epochs: int) -> ConfigDict:
    """How long to train, and what to do on the way."""
    return ConfigDict(
        {
            "max_epochs": max_epochs,  # with max_steps: whichever comes first, 0 is no limit
            "max_steps": 0,
            "check_val_every_n_epoch": 1,
            "check_val_every_n_steps": 0,  # the same in steps; 0 goes by epochs
            "save_every_n_steps": 1000,  # what a killed run loses at most
            "log_every_n_steps": 50,
            "gradient_clip_val": 0.0,  # largest global norm of the gradient; 0 is no limit
            "precision": "f32",  # or "bf16"
            "num_devices": 0,  # local devices to use; 0 is all
        }
    )


def callbacks(*, patience: int) -> ConfigDict:
    """When to stop early, and which checkpoint is the best."""
    return ConfigDict(
        {
            "early_stopping": {
                "monitor": "val/total_loss",
                "patience": patience,  # validations without improvement; 0 never stops early
                "mode": "min",
                "min_delta": 0.0,  # an improvement is by more than this
            },
            "model_checkpoint": {
                "monitor": "val/total_loss",
                "mode": "min",
                "save_top_k": 1,  # best checkpoints to keep, beside the last one
            },
        }
    )


def logger() -> ConfigDict:
    """Weights & Biases, beside the TensorBoard events that every run writes."""
    return ConfigDict(
        {
            "wandb": {
                "project": "",  # '' is off
                "name": "",
                "group": "",  # '' is <task_name>/<data set>
                "tags": "",
            },
        }
    )


def optimizer(lr: float = 1e-4) -> ConfigDict:
    """The optimiser."""
    return ConfigDict(
        {
            "name": "adamw",  # or "adam"
            "lr": lr,
            "weight_decay": 0.0,
            "beta1": 0.9,
            "beta2": 0.999,
            "eps": 1e-8,
        }
    )


def scheduler() -> ConfigDict:
    """The learning rate over the run."""
    return ConfigDict(
        {
            "name": "constant",  # "constant", "warmup_linear", "cosine" or "plateau"
            "warmup_steps": 0,  # linear warm-up, whatever comes after it
            "decay_steps": 0,  # where cosine ends; 0 is the end of the run
            "final_factor": 0.0,  # last learning rate / first, of cosine
            "factor": 0.1,  # what plateau multiplies by
            "patience": 10,  # validations that plateau waits
            "threshold": 1e-4,  # relative improvement that counts, for plateau
            "min_lr": 0.0,
            "monitor": "",  # what plateau watches; '' is model_checkpoint's, and so is its mode
            "mode": "",
        }
    )


def augmentation() -> ConfigDict:
    """Random rotations and translations of the training crystals."""
    return ConfigDict(
        {
            "rotate": True,
            "translate": True,
            "per_crystal": True,  # false: one of each for a whole batch, as Chemeleon2 does
        }
    )


def experiments(task_name: str) -> list[str]:
    """Return the names of the experiments of a stage, sorted."""
    names = [
        path.relative_to(_EXPERIMENTS).with_suffix("").as_posix()
        for path in _EXPERIMENTS.rglob("*.py")
        if path.stem != "__init__"
    ]
    return sorted(name for name in names if task_name == _module(name).TASK)


def with_experiment(config: ConfigDict, experiment: str) -> ConfigDict:
    """Lay an experiment over a base config; '' leaves it as it is.

    Raises:
        ValueError: the stage has no experiment of that name.
    """
    if not experiment:
        return config
    known = experiments(config.task_name)
    if experiment not in known:
        hint = did_you_mean(experiment, known)
        raise ValueError(
            f"{config.task_name} has no experiment {experiment!r}.{hint} "
            f"There are: {', '.join(known)}."
        )
    config.lock()  # an experiment changes values, it adds no keys
    config.experiment = experiment
    _module(experiment).update(config)
    return config


def _module(experiment: str) -> ModuleType:
    return importlib.import_module(f"configs.experiment.{experiment.replace('/', '.')}")
