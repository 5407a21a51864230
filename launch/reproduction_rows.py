"""The rows of the reference table: which commands each runs. See `reproduce.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launch.reproduction_state import Done, Runner

Overrides = Mapping[str, str | int | float | bool]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained and what is measured of it.

    Attributes:
        vae, ldm: experiments.
        vae_overrides, ldm_overrides: what the row changes in them.
        num_samples: crystals to generate.
        curve: whether quality is measured against steps of the sampler.
        reinforce: experiment of reinforcement learning from the LDM; '' for none.
        needs_gpu: run only where JAX finds one.
    """

    vae: str = "fast/vae_dng"
    ldm: str = "fast/ldm_flow"
    vae_overrides: Overrides = field(default_factory=dict)
    ldm_overrides: Overrides = field(default_factory=dict)
    num_samples: int = 1000
    curve: bool = False
    reinforce: str = ""
    needs_gpu: bool = False


@dataclass(frozen=True)
class Row:
    """A row of the table: a data set and a recipe.

    Attributes:
        name: of the row, also that of its folder.
        data: a folder in --data_dir, or the name of an embedded set.
        recipe: see `Recipe`.
    """

    name: str
    data: str
    recipe: Recipe = field(default_factory=Recipe)


EMBEDDED = ("structure-types", "prototypes")

_FULL_SIZE = Recipe(
    vae="mp_20/vae_dng",
    ldm="mp_20/ldm_null",
    vae_overrides={"trainer.max_epochs": 0, "trainer.max_steps": 6000, "trainer.precision": "bf16"},
    ldm_overrides={
        "trainer.max_epochs": 0,
        "trainer.max_steps": 20000,
        "trainer.precision": "bf16",
    },
    num_samples=10000,
    curve=True,
    needs_gpu=True,
)
_LARGER_CELLS = Recipe(vae="fast/vae_dng_20", ldm_overrides={"trainer.max_steps": 4000}, curve=True)

ROWS = (
    Row("structure-types", "structure-types", Recipe(reinforce="fast/rl_density", curve=True)),
    Row("perov-5", "perov-5", Recipe(curve=True)),
    Row("mp-20-bt", "mp-20-bt", _LARGER_CELLS),
    Row("carbon-24", "carbon-24", _LARGER_CELLS),
    Row("mpts-52", "mpts-52", _LARGER_CELLS),
    Row("mp-20-bt-full-size", "mp-20-bt", _FULL_SIZE),
)


@dataclass(frozen=True)
class Request:
    """One row to run.

    Attributes:
        row: which.
        seed: of training and sampling.
        data_dir: folder of the data sets.
        max_steps: training steps in place of the recipe's, for a trial; 0 keeps them.
        num_samples: crystals in place of the recipe's; 0 keeps them.
    """

    row: Row
    seed: int
    data_dir: Path
    max_steps: int = 0
    num_samples: int = 0

    @property
    def reference(self) -> str:
        """The data set as `evaluate` takes it."""
        is_embedded = self.row.data in EMBEDDED
        return self.row.data if is_embedded else str(self.data_dir / self.row.data)

    @property
    def data_flag(self) -> str:
        """The data set as `train` takes it."""
        key = "name" if self.row.data in EMBEDDED else "data_dir"
        return f"--config.data.{key}={self.reference}"


def run_row(request: Request, runner: Runner) -> dict[str, Done]:
    """Run all commands of a row that are not done yet; name -> what each left."""
    recipe, seed = request.row.recipe, request.seed
    count = request.num_samples or recipe.num_samples
    done: dict[str, Done] = {}

    def train(name: str, stage: str, experiment: str, flags: list[str]) -> str:
        trial = {
            "trainer.max_steps": request.max_steps,
            f"{stage}_module.scheduler.warmup_steps": 1,  # shorter than the trial
        }
        steps = _as_flags(trial) if request.max_steps else []
        common = [request.data_flag, f"--config.seed={seed}"]
        done[name] = runner.train(name, stage, experiment, [*common, *flags, *steps])
        return str(done[name].run)

    def sample(name: str, model: str) -> None:
        flags = [f"--model={model}", f"--num_samples={count}", f"--seed={seed}"]
        done[name] = runner.run(name, "-m chemeleon2_jax.sample", flags)
        flags = [f"--structures={done[name].folder}", f"--reference={request.reference}"]
        done[f"{name}_evaluate"] = runner.run(
            f"{name}_evaluate", "-m chemeleon2_jax.evaluate", flags
        )

    vae = train("vae", "vae", recipe.vae, _as_flags(recipe.vae_overrides))
    done["reconstruction"] = runner.run(
        "reconstruction",
        "launch/reconstruction.py",
        [f"--model={vae}", "--num_samples=1000"],
        output="--json={}/reconstruction.json",
    )
    start = [f"--config.ldm_module.vae_ckpt_path={vae}"]
    ldm = train("ldm", "ldm", recipe.ldm, [*start, *_as_flags(recipe.ldm_overrides)])
    sample("sample", ldm)
    if recipe.curve:
        flags = [f"--model={ldm}", f"--num_samples={min(count, 1000)}", f"--seed={seed}"]
        done["curve"] = runner.run("curve", "launch/quality_curve.py", flags)
    if recipe.reinforce:
        _reinforce(recipe.reinforce, ldm, train=train, sample=sample)
    return done


def _reinforce(
    experiment: str,
    ldm: str,
    *,
    train: Callable[[str, str, str, list[str]], str],
    sample: Callable[[str, str], None],
) -> None:
    """Fine-tune with the rewards and, as a control, with the same rewards of other crystals."""
    for name, shuffle in (("rl", "false"), ("rl_shuffled", "true")):
        flags = [
            f"--config.rl_module.ldm_ckpt_path={ldm}",
            f"--config.rl_module.reward_fn.shuffle={shuffle}",
        ]
        # The last checkpoint: the best of the control would be the best of chance.
        sample(f"{name}_sample", f"{train(name, 'rl', experiment, flags)}/checkpoints/last")


def _as_flags(overrides: Overrides) -> list[str]:
    return [f"--config.{key}={value}" for key, value in overrides.items()]
