"""Blocks shared by the stages' configs, and experiments as changes to a base config.

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
    """Return the values of every run."""
    config = ConfigDict()
    config.task_name = task_name
    config.experiment = ""  # set by with_experiment
    config.seed = 0
    config.run_name = ""  # start of the run folder's name; for resume_from = "auto"
    config.resume_from = ""  # run folder to resume in place; "auto": the newest one of run_name
    config.paths = ConfigDict({"log_dir": "logs"})
    return config


def data(name: str, *, batch_size: int = 256) -> ConfigDict:
    """Return the data set's block."""
    return ConfigDict(
        {
            "name": name,  # a published set or "prototypes"; see the README
            "data_dir": "",  # folder with train/val/test.csv[.gz]; replaces `name`
            "split": "",  # shares such as "0.8,0.1,0.1", if data_dir is one CSV file to split
            "batch_size": batch_size,  # crystals per step, over all devices
            "target_condition": "",  # property columns to read
            "rename": "",  # "column of the file:name in the config", comma-separated
            "max_atoms": 0,  # largest number of atoms in a crystal; 0 for no limit
            "keep_inconsistent": False,  # keep crystals that disagree with the formula of their CIF
            # Take the other values here, except batch_size, target_condition and num_workers, from
            # the run of the model that this run starts from, unless the command line names data.
            "inherit": True,
            "same_contents": True,  # resume only with the crystals that the run had before
            "num_workers": 0,  # processes that parse and match; 0 for one per CPU core, up to 16
        }
    )


def packing() -> ConfigDict:
    """Return the block of the layout of crystals in rows of tokens."""
    return ConfigDict(
        {
            "layout": "packed",  # or "padded": one crystal per row
            "row_tokens": 0,  # tokens per row; 0 chooses by the largest crystal
            "max_shapes": 5,  # largest number of programs to compile; fewer waste more tokens
        }
    )


def trainer(max_epochs: int) -> ConfigDict:
    """Return the block of the training loop."""
    return ConfigDict(
        {
            "max_epochs": max_epochs,  # with max_steps: whichever comes first; 0 for no limit
            "max_steps": 0,
            "check_val_every_n_epoch": 1,
            "check_val_every_n_steps": 0,  # in steps; 0 counts epochs
            "save_every_n_steps": 1000,  # a killed run loses at most so many steps
            "log_every_n_steps": 50,
            "gradient_clip_val": 0.0,  # largest global norm of the gradient; 0 for no limit
            "precision": "f32",  # or "bf16"
            "num_devices": 0,  # local devices; 0 for all
        }
    )


def callbacks(*, patience: int) -> ConfigDict:
    """Return the blocks of early stopping and of the best checkpoint."""
    return ConfigDict(
        {
            "early_stopping": {
                "monitor": "val/total_loss",
                "patience": patience,  # validations without improvement; 0 never stops early
                "mode": "min",
                "min_delta": 0.0,  # smallest change that counts as an improvement
            },
            "model_checkpoint": {
                "monitor": "val/total_loss",
                "mode": "min",
                "save_top_k": 1,  # number of best checkpoints to keep, besides the last one
            },
        }
    )


def logger() -> ConfigDict:
    """Return the block of Weights & Biases; every run writes TensorBoard events too."""
    return ConfigDict(
        {
            "wandb": {
                "project": "",  # '' for off
                "name": "",
                "group": "",  # '' for <task_name>/<data set>
                "tags": "",
            },
        }
    )


def optimizer(lr: float = 1e-4) -> ConfigDict:
    """Return the optimiser's block."""
    return ConfigDict(
        {
            "name": "adamw",  # or "adam", "nadamw", "lamb", "lion", "adan", "muon"
            "lr": lr,
            "weight_decay": 0.0,
            "beta1": 0.9,
            "beta2": 0.999,
            "eps": 1e-8,
        }
    )


def scheduler() -> ConfigDict:
    """Return the block of the learning rate's schedule."""
    return ConfigDict(
        {
            "name": "constant",  # "constant", "warmup_linear", "cosine" or "plateau"
            "warmup_steps": 0,  # linear warm-up before any schedule
            "decay_steps": 0,  # end of cosine; 0 for the end of the run
            "final_factor": 0.0,  # cosine: last learning rate / first
            "factor": 0.1,  # plateau: factor on the learning rate
            "patience": 10,  # plateau: validations without improvement
            "threshold": 1e-4,  # plateau: smallest relative improvement
            "min_lr": 0.0,
            "monitor": "",  # plateau: metric; '' for metric and mode of model_checkpoint
            "mode": "",
        }
    )


def augmentation() -> ConfigDict:
    """Return the block of random rotations and translations of the training crystals."""
    return ConfigDict(
        {
            "rotate": True,
            "translate": True,
            "per_crystal": True,  # false: one of each per batch, as Chemeleon2
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
    """Apply an experiment to a base config; '' is no experiment.

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
    config.lock()  # an experiment changes values and adds no keys
    config.experiment = experiment
    _module(experiment).update(config)
    return config


def _module(experiment: str) -> ModuleType:
    return importlib.import_module(f"configs.experiment.{experiment.replace('/', '.')}")
