"""One step of reinforcement learning: roll out, judge, update."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from chemeleon2_jax.common.errors import RewardError
from chemeleon2_jax.common.randomness import named_key
from chemeleon2_jax.crystals.arrays import CrystalArrays
from chemeleon2_jax.crystals.visualize import draw_grid
from chemeleon2_jax.inference.generator import mark_failed
from chemeleon2_jax.models.vae import split_crystals
from chemeleon2_jax.rewards.combine import Rewards
from chemeleon2_jax.rewards.evaluation import RewardFunction
from chemeleon2_jax.rl.grpo import advantages
from chemeleon2_jax.rl.update import Chunk
from chemeleon2_jax.rows.layout import to_slots
from chemeleon2_jax.rows.packing import Assignment
from chemeleon2_jax.rows.rows import Rows
from chemeleon2_jax.stages.rl.programs import Programs, Settings
from chemeleon2_jax.stages.rl.requests import PromptBatches
from chemeleon2_jax.training.parallel import DATA_AXIS, rows_here, shard_batch
from chemeleon2_jax.training.stage import Pictures
from chemeleon2_jax.training.state import TrainState

_MOST_USELESS = 3  # rollouts in a row


@dataclass
class _Recorded:
    """One chunk of a rollout."""

    rows: Rows
    assignment: Assignment
    states: jax.Array
    failed: np.ndarray  # (B,) bool
    old_log_probs: jax.Array | None = None


class RolloutStep:
    """The step of the training loop: `(state, frozen, batch) -> (state, metrics, pictures)`.

    Args:
        programs: see `make_programs`.
        settings: see `Settings`.
        batches: source of the step's batches.
        reward: of the crystals.
        mesh: devices.
    """

    def __init__(
        self,
        programs: Programs,
        settings: Settings,
        *,
        batches: PromptBatches,
        reward: RewardFunction,
        mesh: Mesh,
    ) -> None:
        self.programs, self.settings, self.batches = programs, settings, batches
        self.reward, self.mesh = reward, mesh
        self._key = named_key(settings.seed, "rollout")
        self._num_useless = 0  # rollouts in a row

    def __call__(
        self, state: TrainState, frozen: Mapping[str, Any], batch: tuple[Rows, ...]
    ) -> tuple[TrainState, dict[str, Any], Pictures]:
        """Roll out, judge, update."""
        number = int(state.step) // self.batches.num_mini_batches
        start = time.perf_counter()
        with self.reward.start() as evaluation:
            recorded, crystals = self._roll_out(
                state.params, frozen, batch, number=number, on_crystals=evaluation.add
            )
            rolled_out = time.perf_counter()
            self._score_old(state.params, frozen, recorded)
            scored = time.perf_counter()
            rewards = evaluation.result()
        judged = time.perf_counter()
        self._warn_of_failures(number + 1, rewards)
        self._check_problem(number + 1, rewards)
        values = self._advantages(rewards, number)
        state, metrics = self._update(state, frozen, recorded, values=values)
        jax.block_until_ready(metrics)
        drawn = self.settings.num_drawn and (number + 1) % self.settings.draw_every == 0
        measured = {
            **metrics,
            **{f"reward/{name}": value for name, value in rewards.summary().items()},
            "advantage_std": float(values.std()),
            "failed_chains": float(sum(chunk.failed.sum() for chunk in recorded)),
            "rollout_seconds": rolled_out - start,
            "reward_seconds": judged - scored,  # while the device waits
            "update_seconds": time.perf_counter() - judged + scored - rolled_out,
        }
        return state, measured, self._draw(crystals, rewards) if drawn else {}

    def _roll_out(
        self,
        params: Any,
        frozen: Mapping[str, Any],
        batch: Sequence[Rows],
        *,
        number: int,
        on_crystals: Callable[[Sequence[CrystalArrays]], None],
    ) -> tuple[list[_Recorded], list[CrystalArrays]]:
        """Roll out all chunks; `on_crystals` gets those of one chunk while the next one runs."""
        key = jax.random.fold_in(self._key, number)
        # Dispatched at once: the device need not wait for the host between the chunks.
        running = [self.programs.roll_out(params, frozen["vae"], key, rows) for rows in batch]
        assignments = self.batches.assignments(self.batches.prompts(number).num_atoms)
        recorded, crystals = [], []
        for rows, assignment, (trajectory, reconstruction) in zip(
            batch, assignments, running, strict=True
        ):
            in_slots, arrays = jax.device_get((trajectory.failed, reconstruction))
            failed = assignment.take_slots(in_slots)
            built = mark_failed(split_crystals(arrays, assignment), failed)
            on_crystals(built)
            crystals += built
            recorded.append(_Recorded(rows, assignment, trajectory.states, failed))
        return recorded, crystals

    def _score_old(self, params: Any, frozen: Any, recorded: Sequence[_Recorded]) -> None:
        """Record the old log-probabilities for all mini-batches but the first, which is updated
        with the parameters that drew it.
        """
        for chunk, span in zip(recorded, self.batches.chunks, strict=True):
            if span.mini_batch:
                zeros = np.zeros(len(chunk.failed), np.float32)
                inputs = self._chunk(chunk, zeros, 1.0, is_drawn_with=True)
                scored = self.programs.run_pass(params, frozen["reference"], inputs)
                chunk.old_log_probs = scored.log_probs

    def _advantages(self, rewards: Rewards, number: int) -> np.ndarray:
        """Advantages of all crystals, (B,); the same in every process."""
        totals = rewards.total
        if self.settings.shuffle:
            rng = np.random.default_rng((self.settings.seed, number))
            if self.settings.norm_in_groups:
                # What a prompt is worth on the whole must not tell the control from the rewards.
                groups = totals.reshape(-1, self.settings.group_size)
                totals = rng.permuted(groups, axis=1).reshape(-1)
            else:
                totals = rng.permutation(totals)
        return np.asarray(
            advantages(
                jnp.asarray(totals, jnp.float32),
                group_size=self.settings.group_size,
                scope="group" if self.settings.norm_in_groups else "batch",
            )
        )

    def _update(
        self, state: TrainState, frozen: Any, recorded: Sequence[_Recorded], *, values: np.ndarray
    ) -> tuple[TrainState, dict[str, Any]]:
        """Update once for each mini-batch; metrics are means over them."""
        history: list[dict[str, Any]] = []
        for index in range(self.batches.num_mini_batches):
            chunks = [
                (chunk, values[span.start : span.stop])
                for chunk, span in zip(recorded, self.batches.chunks, strict=True)
                if span.mini_batch == index
            ]
            num_built = max(1, sum(int((~chunk.failed).sum()) for chunk, _ in chunks))
            gradient, metrics = None, None
            for chunk, own_values in chunks:
                share = float((~chunk.failed).sum()) / num_built
                inputs = self._chunk(chunk, own_values, share, is_drawn_with=index == 0)
                passed = self.programs.run_pass(state.params, frozen["reference"], inputs)
                pair = (passed.gradient, passed.metrics)
                if gradient is not None:
                    pair = _add((gradient, metrics), pair)
                gradient, metrics = pair
            state, applied = self.programs.apply(state, gradient)
            history.append({**(metrics or {}), **applied})
        means = {name: jnp.mean(jnp.stack([h[name] for h in history])) for name in history[0]}
        return state, {**means, "lr": history[-1]["lr"]}

    def _chunk(
        self, chunk: _Recorded, values: np.ndarray, share: float, *, is_drawn_with: bool
    ) -> Chunk:
        """Inputs of a pass over a chunk with these advantages (B,)."""
        weights = (~chunk.failed).astype(np.float32)
        here = rows_here(self.mesh, chunk.assignment.shape.rows)
        sharded = shard_batch(
            {
                "advantages": to_slots(values, chunk.assignment, here),
                "weights": to_slots(weights, chunk.assignment, here),
                "share": np.float32(share),
                "is_drawn_with": np.bool_(is_drawn_with),
            },
            self.mesh,
        )
        old = chunk.old_log_probs
        if old is None:
            shape = (self.settings.sampler.num_drawn, *chunk.rows.is_crystal.shape)
            sharding = NamedSharding(self.mesh, P(None, DATA_AXIS))
            old = jnp.zeros(shape, jnp.float32, device=sharding)
        return Chunk(rows=chunk.rows, states=chunk.states, old_log_probs=old, **sharded)

    def _warn_of_failures(self, step: int, rewards: Rewards) -> None:
        for name, judged in rewards.components.items():
            if judged.failures:
                logging.warning(
                    "step %d: the reward %s failed for %d of %d crystals: %s",
                    *(step, name, sum(judged.failures.values())),
                    *(len(rewards.total), judged.reasons),
                )

    def _check_problem(self, step: int, rewards: Rewards) -> None:
        """End the run after several useless rollouts in a row: a single one may be bad luck."""
        if rewards.problem is None:
            self._num_useless = 0
            return
        self._num_useless += 1
        if self._num_useless >= _MOST_USELESS:
            raise RewardError(f"{_MOST_USELESS} rollouts in a row were useless; {rewards.problem}")
        logging.warning("step %d: nothing to learn from, %s", step, rewards.problem)

    def _draw(self, crystals: Sequence[CrystalArrays], rewards: Rewards) -> Pictures:
        """Draw the best and worst crystals of a rollout."""
        order = np.argsort(-rewards.raw, kind="stable")
        judged = [int(i) for i in order if rewards.refused[i] is None]
        count = self.settings.num_drawn
        chosen = {"best": judged[:count], "worst": judged[::-1][:count]}
        return {
            f"rollout/{name}": draw_grid(
                [crystals[i] for i in indices], titles=[f"{rewards.raw[i]:.4g}" for i in indices]
            )
            for name, indices in chosen.items()
        }


@jax.jit
def _add(first: Any, second: Any) -> Any:
    return jax.tree.map(jnp.add, first, second)
