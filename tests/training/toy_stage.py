"""A small regression as a stage, for tests of the training core."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from chemeleon2_jax.rows.batch import Batch
from chemeleon2_jax.training.stage import Stage, Validation

ROWS, WIDTH, HIDDEN = 8, 4, 16
STEPS_PER_EPOCH = 4


@dataclasses.dataclass(frozen=True)
class ToyBatches:
    """Batches of random rows; some are slow, hold a NaN or fail, on purpose."""

    steps_per_epoch: int = STEPS_PER_EPOCH
    nan_at: int = -1
    fail_at: int = -1
    seconds: float = 0.0
    alternate: bool = False

    def batch(self, step: int) -> Batch:
        if step == self.fail_at:
            raise RuntimeError(f"batch {step} is broken")
        time.sleep(self.seconds)
        rng = np.random.default_rng((7, step))
        rows = ROWS * (1 + (step % 2 if self.alternate else 0))
        x = rng.normal(size=(rows, WIDTH)).astype(np.float32)
        y = np.sin(x.sum(axis=1))
        if step == self.nan_at:
            y[3] = np.nan
        ids = (np.arange(rows) + rows * step).astype(np.int32)
        arrays = {"x": x, "y": y, "id": ids, "scale": np.float32(1.0)}
        return Batch(arrays, num_crystals=rows, useful_tokens=0.75)


def init_params(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape, scale=0.3), jnp.float32)  # noqa: E731
    return {
        "layers": [{"kernel": normal(WIDTH, HIDDEN), "bias": jnp.zeros(HIDDEN)}],
        "out": normal(HIDDEN),
    }


def predict(params: Any, x: jax.Array) -> jax.Array:
    layer = params["layers"][0]
    return jnp.tanh(x @ layer["kernel"] + layer["bias"]) @ params["out"]


def loss_fn(params: Any, frozen: Any, key: jax.Array, batch: Any) -> tuple[jax.Array, Any]:
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch["id"])
    noise = 0.1 * jax.vmap(lambda k: jax.random.normal(k, (WIDTH,)))(keys)
    error = predict(params, batch["x"] + noise) * frozen["gain"] * batch["scale"] - batch["y"]
    loss = jnp.sum(error**2) / error.shape[0]
    return loss, {"abs_error": jnp.mean(jnp.abs(error))}


def validation_values(params: Any) -> dict[str, float]:
    x = np.random.default_rng(1).normal(size=(32, WIDTH)).astype(np.float32)
    error = predict(params, x) - np.sin(x.sum(axis=1))
    return {"val/total_loss": float(jnp.mean(error**2)), "val/other": 1.0}


def validate(params: Any, state: Any) -> Validation:
    """Validate; the state counts the validations of the run."""
    return Validation(validation_values(params), state={"count": state.get("count", 0) + 1})


FROZEN = {"gain": np.float32(1.5)}


def toy_items(params: Any, ema_params: Any) -> dict[str, Any]:
    items = {"params": params, "vae": FROZEN}
    return items if ema_params is None else {**items, "ema": ema_params}


def toy_stage(**changes: Any) -> Stage:
    stage = Stage(
        name="toy",
        init_params=init_params(),
        frozen=FROZEN,
        loss_fn=loss_fn,
        batches=ToyBatches(),
        validate=validate,
        value_names=("val/total_loss", "val/other"),
        items=toy_items,
        meta={"hidden": HIDDEN, "size_table": [0, 1, 2]},
    )
    return dataclasses.replace(stage, **changes)


def validation_from(values: list[float]) -> Any:
    """Return a validation with these values, one after the other."""
    remaining = iter(values)
    return lambda params, state: Validation({"val/total_loss": next(remaining)})


def same_trees(first: Any, second: Any) -> bool:
    """Return whether two trees are equal, bit for bit."""
    a, b = jax.tree.leaves(first), jax.tree.leaves(second)
    return len(a) == len(b) and all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in zip(a, b, strict=True)
    )


def arrays_of(state: Any) -> Any:
    """Return a state with its key as numbers."""
    return dataclasses.replace(state, key=jax.random.key_data(state.key))


def step_folders(run_dir: Path) -> list[str]:
    return sorted(p.name for p in (run_dir / "checkpoints").iterdir() if not p.is_symlink())
