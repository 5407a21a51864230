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
from chemeleon2_jax.stages.common import broadcast_from_first
from chemeleon2_jax.stages.rl.programs import Programs, Settings
from chemeleon2_jax.stages.rl.requests import PromptBatches
from chemeleon2_jax.training.parallel import DATA_AXIS, shard_batch
from chemeleon2_jax.training.stage import Pictures
from chemeleon2_jax.training.state import TrainState

_MOST_USELESS = 3


@dataclass
class _Recorded:
    """A chunk of a rollout."""

    rows: Rows
    where: Assignment
    states: jax.Array
    failed: np.ndarray  # (B,) bool
    old_log_probs: jax.Array | None = None


class RolloutStep:
    """The step of the training loop: `(state, frozen, batch) -> (state, metrics, pictures)`.

    Args:
        programs: see `make_programs`.
        settings: see `Settings`.
        batches: what the batches were made by.
        reward: judges the crystals.
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
        self.num_updates = batches.parts[-1].mini_batch + 1
        self._key = named_key(settings.seed, "rollout")
        self._num_useless = 0  # rollouts in a row

    def __call__(
        self, state: TrainState, frozen: Mapping[str, Any], batch: tuple[Rows, ...]
    ) -> tuple[TrainState, dict[str, Any], Pictures]:
        """Roll out, judge, update."""
        number = int(state.step) // self.num_updates
        start = time.perf_counter()
        with self.reward.start() as evaluation:
            recorded, crystals = self._roll_out(state.params, frozen, batch, number, evaluation.add)
            rolled_out = time.perf_counter()
            self._score_old(state.params, frozen, recorded)
            scored = time.perf_counter()
            rewards = evaluation.result()
        judged = time.perf_counter()
        self._report(number + 1, rewards)
        self._check_problem(number + 1, rewards)
        found = self._advantages(rewards, number)
        state, metrics = self._update(state, frozen, recorded, found)
        jax.block_until_ready(metrics)
        drawn = self.settings.num_drawn and (number + 1) % self.settings.draw_every == 0
        measured = {
            **metrics,
            **{f"reward/{name}": value for name, value in rewards.summary().items()},
            "advantage_std": float(found.std()),
            "failed_chains": float(sum(chunk.failed.sum() for chunk in recorded)),
            "rollout_seconds": rolled_out - start,
            "reward_seconds": judged - scored,  # that the device waited for
            "update_seconds": time.perf_counter() - judged + scored - rolled_out,
        }
        return state, measured, self._draw(crystals, rewards) if drawn else {}

    def _roll_out(
        self,
        params: Any,
        frozen: Mapping[str, Any],
        batch: Sequence[Rows],
        number: int,
        hand_over: Callable[[Sequence[CrystalArrays]], None],
    ) -> tuple[list[_Recorded], list[CrystalArrays]]:
        """Roll out all chunks, handing over each one's crystals while the next is under way."""
        key = jax.random.fold_in(self._key, number)
        # Asked for all at once: the device need not wait for the host between them.
        running = [self.programs.roll_out(params, frozen["vae"], key, rows) for rows in batch]
        sizes = self.batches.prompts(number).num_atoms
        recorded, crystals = [], []
        for rows, where, (trajectory, built) in zip(
            batch, self.batches.assignments(sizes), running, strict=True
        ):
            failed, arrays = jax.device_get((trajectory.failed, built))
            bad = where.take_slots(failed)
            found = mark_failed(split_crystals(arrays, where), bad)
            hand_over(found)
            crystals += found
            recorded.append(_Recorded(rows, where, trajectory.states, bad))
        return recorded, crystals

    def _score_old(self, params: Any, frozen: Any, recorded: Sequence[_Recorded]) -> None:
        """Record the log-probabilities that later mini-batches are compared with.

        The first one meets the parameters that drew it, and needs none.
        """
        for chunk, part in zip(recorded, self.batches.parts, strict=True):
            if part.mini_batch:
                zeros = np.zeros(len(chunk.failed), np.float32)
                inputs = self._chunk(chunk, zeros, 1.0, is_drawn_with=True)
                found = self.programs.run_pass(params, frozen["reference"], inputs)
                chunk.old_log_probs = found.log_probs

    def _advantages(self, rewards: Rewards, number: int) -> np.ndarray:
        values = rewards.total
        if self.settings.shuffle:
            rng = np.random.default_rng((self.settings.seed, number))
            values = rng.permutation(values)
        # Time limits strike where they like: what the first process found counts.
        agreed = broadcast_from_first({str(i): float(v) for i, v in enumerate(values)})
        found = advantages(
            jnp.asarray(list(agreed.values()), jnp.float32),
            group_size=self.settings.group_size,
            scope="group" if self.settings.norm_in_groups else "batch",
        )
        return np.asarray(found)

    def _update(
        self, state: TrainState, frozen: Any, recorded: Sequence[_Recorded], values: np.ndarray
    ) -> tuple[TrainState, dict[str, Any]]:
        """Update once for each mini-batch; metrics are means over them."""
        history: list[dict[str, Any]] = []
        for index in range(self.num_updates):
            members = [
                (chunk, values[part.start : part.stop])
                for chunk, part in zip(recorded, self.batches.parts, strict=True)
                if part.mini_batch == index
            ]
            total = max(1, sum(int((~chunk.failed).sum()) for chunk, _ in members))
            gradient, metrics = None, None
            for chunk, own in members:
                share = float((~chunk.failed).sum()) / total
                inputs = self._chunk(chunk, own, share, is_drawn_with=index == 0)
                found = self.programs.run_pass(state.params, frozen["reference"], inputs)
                pair = (found.gradient, found.metrics)
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
        weights = (~chunk.failed).astype(np.float32)
        sharded = shard_batch(
            {
                "advantages": to_slots(values, chunk.where),
                "weights": to_slots(weights, chunk.where),
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

    def _report(self, step: int, rewards: Rewards) -> None:
        """Say what failed and why: the numbers are in the log anyway."""
        for name, judged in rewards.components.items():
            failures = judged.failures
            if failures:
                count = sum(failures.values())
                logging.warning(
                    "step %d: the reward %s failed for %d of %d crystals: %s",
                    *(step, name, count, len(rewards.total), judged.reasons),
                )

    def _check_problem(self, step: int, rewards: Rewards) -> None:
        """End the run where several rollouts in a row told nothing: one may be bad luck."""
        # What the first process found counts: time limits strike where they like.
        found = broadcast_from_first({"problem": float(rewards.problem is not None)})
        self._num_useless = self._num_useless + 1 if found["problem"] else 0
        if not self._num_useless:
            return
        problem = rewards.problem or "the first process's rewards failed"
        if self._num_useless >= _MOST_USELESS:
            raise RewardError(f"{_MOST_USELESS} rollouts in a row were of no use; {problem}")
        logging.warning("step %d: nothing to learn from, %s", step, problem)

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
