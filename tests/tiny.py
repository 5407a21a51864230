"""A data set, configs and runs so small that tests can train them."""

from __future__ import annotations

import csv
import fcntl
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from pymatgen.core import Lattice, Structure

from chemeleon2_jax.models.condition_kinds import Condition
from chemeleon2_jax.models.dit import DiT
from chemeleon2_jax.models.meta import ModelMeta
from chemeleon2_jax.models.sizes import ConditionSizes
from chemeleon2_jax.pretrained.loading import LDMParts
from chemeleon2_jax.runs.config import fit_config, load_config
from chemeleon2_jax.stages import build
from chemeleon2_jax.training.loop import fit
from chemeleon2_jax.training.plain_trees import flat_names, to_plain
from chemeleon2_jax.training.stage import Stage

ROOT = Path(__file__).resolve().parents[1]
BROKEN_ROW, BROKEN_ID = 5, "mp-broken"

_SIZES = {"d_model": 16, "nhead": 2, "dim_feedforward": 32, "num_layers": 1}
TINY_DATA = {"data.batch_size": 12, "data.num_workers": 1}
TINY_VAE = {
    **TINY_DATA,
    **{f"vae_module.encoder.{name}": value for name, value in _SIZES.items()},
    **{f"vae_module.decoder.{name}": value for name, value in _SIZES.items()},
    "vae_module.match_rate.num_samples": 0,
    "vae_module.optimizer.lr": 0.01,
    "trainer.max_steps": 150,
    "trainer.check_val_every_n_epoch": 25,
    "trainer.log_every_n_steps": 50,
}
TINY_LDM = {
    **TINY_DATA,
    "ldm_module.denoiser.hidden_size": 16,
    "ldm_module.denoiser.depth": 1,
    "ldm_module.denoiser.num_heads": 2,
    "ldm_module.optimizer.lr": 0.01,
    "trainer.max_steps": 150,
    "trainer.check_val_every_n_epoch": 25,
    "trainer.log_every_n_steps": 50,
}
TINY_RL = {
    **TINY_DATA,
    "data.batch_size": 4,
    "rl_module.rl_configs.num_group_samples": 6,
    "rl_module.rl_configs.group_reward_norm": False,
    "rl_module.sampling_configs.sampling_steps": 6,
    "rl_module.validation.num_samples": 12,
    "trainer.check_val_every_n_steps": 2,
}
VAE_SPEC = f"{ROOT}/configs/train_vae.py:tiny/vae_dng"
LDM_SPEC = f"{ROOT}/configs/train_ldm.py:tiny/ldm_null"
RL_SPEC = f"{ROOT}/configs/train_rl.py:tiny/rl_density"


# --- crystals -------------------------------------------------------------------------------------


def rocksalt(cation: str, anion: str, length: float) -> Structure:
    """The primitive cell, 2 atoms."""
    vectors = length / 2 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])
    return Structure(Lattice(vectors), [cation, anion], [[0] * 3, [0.5] * 3])


def caesium_chloride(cation: str, anion: str, length: float) -> Structure:
    """2 atoms."""
    return Structure(Lattice.cubic(length), [cation, anion], [[0] * 3, [0.5] * 3])


def perovskite(a: str, b: str, length: float) -> Structure:
    """A B O3, 5 atoms."""
    frac = [[0] * 3, [0.5] * 3, [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    return Structure(Lattice.cubic(length), [a, b, "O", "O", "O"], frac)


def zincblende(cation: str, anion: str, length: float) -> Structure:
    """The conventional cell, 8 atoms."""
    cell = Lattice.cubic(length)
    return Structure.from_spacegroup("F-43m", cell, [cation, anion], [[0] * 3, [0.25] * 3])


def make_crystals() -> list[Structure]:
    """41 crystals of 2, 5 and 8 atoms."""
    pairs = itertools.product
    return [
        *(rocksalt(a, x, 4.1 + 0.1 * i) for i, (a, x) in enumerate(pairs(_ALKALI, _HALOGENS))),
        *(caesium_chloride(a, x, 4.0 + 0.1 * i) for i, (a, x) in enumerate(pairs(_HEAVY, "FI"))),
        *(perovskite(a, b, 3.8 + 0.05 * i) for i, (a, b) in enumerate(pairs(_A, _B))),
        *(zincblende(a, x, 5.4 + 0.1 * i) for i, (a, x) in enumerate(pairs(_III, _V))),
    ]


_ALKALI, _HALOGENS, _HEAVY = ("Li", "Na", "K", "Rb"), ("F", "Cl", "Br", "I"), ("Cs", "Tl")
_A, _B = ("Ca", "Sr", "Ba"), ("Ti", "Zr", "Hf", "Sn")
_III, _V = ("Al", "Ga", "In"), ("P", "As", "Sb")


def write_split(path: Path, structures: Iterable[Structure], *, broken_row: int = 0) -> None:
    """Write a CSV with ids `<file>-<number>`; `broken_row` (1-based) gets a CIF that is none."""
    rows = [(f"{path.stem}-{i}", s.to(fmt="cif")) for i, s in enumerate(structures)]
    if broken_row:
        rows.insert(broken_row - 1, (BROKEN_ID, "data_broken\n_cell_length_a  what\n"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["material_id", "cif"])
        writer.writerows(rows)


def write_folder(folder: Path) -> Path:
    """Write train, val and test, with one broken row in train."""
    crystals = make_crystals()
    write_split(folder / "train.csv", crystals, broken_row=BROKEN_ROW)
    write_split(folder / "val.csv", crystals[2::6])
    write_split(folder / "test.csv", crystals[4::6])
    return folder


def write_two(folder: Path, *, copies: int = 1) -> Path:
    """Write two crystals, in training and validation alike: what a model can learn by heart."""
    two = [rocksalt("Na", "Cl", 5.64), perovskite("Sr", "Ti", 3.905)] * copies
    for split in ("train", "val", "test"):
        write_split(folder / f"{split}.csv", two)
    return folder


# --- configs and stages ---------------------------------------------------------------------------


def make_config(spec: str, overrides: Mapping[str, Any]) -> ConfigDict:
    """Load a config file with values as `--config.<key>=<value>` would set them."""
    config = load_config(spec)
    config.update_from_flattened_dict(dict(overrides))
    return config


def vae_config(data_dir: Path, **blocks: Mapping[str, Any]) -> ConfigDict:
    """The tiny VAE; `blocks` change it, e.g. vae_module={"noise.ratio": 0.2}."""
    return make_config(VAE_SPEC, TINY_VAE | {"data.data_dir": str(data_dir)} | _flat(blocks))


def ldm_config(data_dir: Path, vae: Path | str, **blocks: Mapping[str, Any]) -> ConfigDict:
    """The tiny LDM over a trained VAE."""
    given = {"data.data_dir": str(data_dir), "ldm_module.vae_ckpt_path": str(vae)}
    return make_config(LDM_SPEC, TINY_LDM | given | _flat(blocks))


def _flat(blocks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{block}.{key}": v for block, values in blocks.items() for key, v in values.items()}


def noisy(params: Any) -> Any:
    """The same parameters with noise on all of them: zeros would hide what they do."""
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(0)
    moved = [x + rng.normal(scale=0.1, size=x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(structure, moved)


def fit_quickly(config: ConfigDict, run_dir: Path, *, steps: int) -> Path:
    """Train a stage for some steps, in this process; return the run folder."""
    config.trainer.max_steps = steps
    config.trainer.check_val_every_n_epoch = 0
    fit(build(config), fit_config(config), run_dir=run_dir)
    return run_dir


def as_flags(overrides: Mapping[str, Any]) -> list[str]:
    """Overrides as arguments of the command line."""
    return [f"--config.{key}={value}" for key, value in overrides.items()]


def numbers(tree: Any) -> np.ndarray:
    """Every number of a tree in one vector."""
    return np.concatenate(
        [np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)]
    )


def by_name(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a tree by names such as 'encoder/transformer/norm/scale'."""
    return {name: np.asarray(leaf) for name, leaf in flat_names(to_plain(tree)).items()}


def first_step(
    stage: Stage | ConfigDict, params: Any = None
) -> tuple[float, dict[str, float], dict[str, np.ndarray]]:
    """Loss, its terms and the gradients of a stage's first step, at its first parameters."""
    stage = stage if isinstance(stage, Stage) else build(stage)
    step = jax.jit(jax.value_and_grad(stage.loss_fn, has_aux=True))
    rows = stage.batches.batch(0).arrays
    params = stage.init_params if params is None else params
    (loss, terms), gradient = step(params, stage.frozen, jax.random.key(0), rows)
    return float(loss), {k: float(v) for k, v in terms.items()}, by_name(gradient)


def meta_of(stage: Stage) -> ModelMeta:
    """What the checkpoints of a stage say of its model."""
    return ModelMeta.from_json(stage.meta)


def conditional(parts: LDMParts, *conditions: Condition) -> LDMParts:
    """The same model but for a new denoiser that takes conditions, with random weights."""
    sizes = replace(parts.sizes, conditions=ConditionSizes(conditions, parts.sizes.hidden_size))
    graphdef, params = nnx.split(DiT(sizes, rngs=nnx.Rngs(0)), nnx.Param)
    return replace(parts, sizes=sizes, graphdef=graphdef, params=noisy(params))


# --- processes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """A command that has ended: exit code, and stdout with stderr."""

    code: int
    output: str


def environment(**changes: str) -> dict[str, str]:
    """Of a child process: the package on its path, and what conftest set."""
    return os.environ | {"PYTHONPATH": str(ROOT)} | changes


def run_module(module: str, *arguments: str, **changes: str) -> Command:
    """Run `python -m chemeleon2_jax.<module>`; `changes` are to its environment."""
    return _run(["-m", f"chemeleon2_jax.{module}", *arguments], environment(**changes))


def run_script(path: Path, *arguments: str, **changes: str) -> Command:
    """Run a Python file."""
    return _run([str(path), *map(str, arguments)], environment(**changes))


def _run(arguments: Sequence[str], env: Mapping[str, str]) -> Command:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return Command(done.returncode, done.stdout)


def start_module(module: str, *arguments: str) -> subprocess.Popen[str]:
    """Start `python -m chemeleon2_jax.<module>`."""
    return subprocess.Popen(
        [sys.executable, "-m", f"chemeleon2_jax.{module}", *arguments],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@dataclass(frozen=True)
class Run:
    """A run of the train command: its folder, and what it printed."""

    path: Path
    output: str

    @staticmethod
    def of(log_dir: Path) -> Run:
        """The one run in a folder of logs."""
        return Run(only_run(log_dir), (log_dir / _OUTPUT).read_text())


def only_run(log_dir: Path) -> Path:
    """The folder of the one run in a folder of logs."""
    (run_dir,) = log_dir.glob("*/runs/*")
    return run_dir


_OUTPUT = "output.txt"


def train(log_dir: Path, spec: str, overrides: Mapping[str, Any]) -> None:
    """Run the train command to its end, with `log_dir` for its logs."""
    flags = as_flags({**overrides, "paths.log_dir": log_dir})
    done = run_module("train", f"--config={spec}", *flags)
    (log_dir / _OUTPUT).write_text(done.output)
    assert done.code == 0, done.output


def train_vae(log_dir: Path, data_dir: Path) -> None:
    """Train the tiny VAE by the command line."""
    matching = {"vae_module.match_rate.num_samples": 4}
    train(log_dir, VAE_SPEC, {**TINY_VAE, **matching, "data.data_dir": data_dir})


def train_ldm(log_dir: Path, data_dir: Path, vae: Path) -> None:
    """Train the tiny LDM by the command line, from a copy of a VAE run that is gone afterwards."""
    copy = shutil.copytree(vae, log_dir / "vae", symlinks=True)
    given = {"data.data_dir": data_dir, "ldm_module.vae_ckpt_path": copy}
    train(log_dir, LDM_SPEC, {**TINY_LDM, **given})
    shutil.rmtree(copy)


SAMPLE_FLAGS = ("--num_samples=12", "--seed=5", "--steps=6", "--cif")


def sample(output_dir: Path, model: Path) -> None:
    """Run the sample command."""
    done = run_module("sample", f"--model={model}", f"--output_dir={output_dir}", *SAMPLE_FLAGS)
    (output_dir / _OUTPUT).write_text(done.output)
    assert done.code == 0, done.output


def make_once(base: Path, name: str, make: Callable[[Path], object]) -> Path:
    """Return folder `name` in `base`, made by the first process that asks; others wait for it."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # the folder that the workers share
    folder, done = base / name, base / f"{name}.done"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
