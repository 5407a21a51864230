"""Reward for a property that a trained predictor gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chemeleon2_jax.common.errors import RewardError
from chemeleon2_jax.common.scores import Scores
from chemeleon2_jax.rewards.component import NOT_JUDGED, Component, Context, Crystal, PerChunk
from chemeleon2_jax.rewards.options import read_number
from chemeleon2_jax.workers import WorkerPool


def build(
    context: Context,
    *,
    ckpt_path: str = "",
    target_name: str = "",
    target_value: str = "",
    clip_min: str = "",
    clip_max: str = "",
) -> Component:
    """Score the value of a predicted property, or minus its squared distance from a target.

    Args:
        context: opens the predictor.
        ckpt_path: run folder of a predictor
        target_name: one of its targets; '' is the only one
        target_value: a number to come near to; '' is as much as possible
        clip_min: lower bound of the prediction; '' is none
        clip_max: upper bound of the prediction; '' is none

    Raises:
        RewardError: no predictor, a target that it does not have, or numbers that are none.
    """
    if not ckpt_path:
        raise RewardError("ckpt_path is empty: give the run folder of a predictor")
    targets, predict = context.models.predict_fn(ckpt_path)
    name = target_name or targets[0]
    if name not in targets:
        raise RewardError(f"target_name is {name!r}, but {ckpt_path} predicts {', '.join(targets)}")
    if not target_name and len(targets) > 1:
        raise RewardError(f"{ckpt_path} predicts {', '.join(targets)}: choose one with target_name")
    wanted = read_number(target_value, "target_value")
    low, high = read_number(clip_min, "clip_min"), read_number(clip_max, "clip_max")
    if low is not None and high is not None and low > high:
        raise RewardError(f"clip_min {low:g} is above clip_max {high:g}")

    def judge(crystals: Sequence[Crystal], pool: WorkerPool) -> Scores:
        del pool
        values = np.asarray(predict(crystals)[name], np.float64)
        if low is not None or high is not None:
            values = np.clip(values, low, high)  # NaN stays NaN
        if wanted is not None:
            values = -((values - wanted) ** 2)
        reasons = [NOT_JUDGED if crystal is None else None for crystal in crystals]
        return Scores.of(values, reasons)

    return PerChunk(judge)
