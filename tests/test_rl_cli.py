"""Fine-tuning with a user's own reward by the command line, as in the README."""

from __future__ import annotations

import os

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from chemeleon2_jax.inference.api import load_model
from tests.tiny import RL_SPEC, ROOT, TINY_RL, as_flags, only_run, run_module

REWARDS = '''
import time

calls = 0


def ternary(structures, target=3):
    """Minus the distance from a number of elements; with failures."""
    global calls
    calls += 1
    if calls % 10 == 0:
        raise RuntimeError("every tenth is too much")
    if any(len(s) == 8 for s in structures) and calls % 3 == 0:
        time.sleep(3600)
    return [-abs(len(s.composition.elements) - target) for s in structures]


def broken(structures):
    return [s.no_such_thing for s in structures]
'''


def train(folder, data, ldm, function, **changes):
    (folder / "my_rewards.py").write_text(REWARDS)
    flags = {
        **TINY_RL,
        "data.data_dir": data,
        "rl_module.ldm_ckpt_path": ldm,
        "rl_module.reward_fn.components": "custom",
        "rl_module.reward_fn.require": "",
        "rl_module.reward_fn.timeout_s": 0.5,
        "rl_module.reward_fn.custom.function": f"my_rewards:{function}",
        "rl_module.reward_fn.custom.floor": -5,
        "rl_module.validation.draw_every_n_steps": 1,
        "trainer.max_steps": 2,
        "paths.log_dir": folder / "logs",
        **changes,
    }
    path = os.pathsep.join([str(ROOT), str(folder)])
    return run_module("train", f"--config={RL_SPEC}", *as_flags(flags), PYTHONPATH=path)


@pytest.fixture(scope="module")
def done(tmp_path_factory, tiny_data, tiny_ldm):
    """(run folder, output) of a run with a reward that fails now and then."""
    folder = tmp_path_factory.mktemp("mine")
    kwargs = {"rl_module.reward_fn.custom.kwargs": '{"target": 2}'}
    command = train(folder, tiny_data, tiny_ldm.path, "ternary", **kwargs)
    assert command.code == 0, command.output
    return only_run(folder / "logs"), command.output


def test_failures_cost_crystals_and_are_reported(done):
    run_dir, output = done
    assert "the reward custom failed for" in output
    assert "RuntimeError: every tenth is too much (" in output
    assert "timeout after 0.5 s (" in output
    assert "sample --model=" in output
    assert "RuntimeError: " in (run_dir / "train.log").read_text()


def test_events_hold_the_rewards_and_the_updates(done):
    events = EventAccumulator(str(done[0])).Reload()
    tags = set(events.Tags()["scalars"])
    for name in ("mean", "min", "max", "failures", "normalised", "failures/RuntimeError"):
        assert f"train/reward/custom_{name}" in tags
    for name in (
        "reward/raw_reward",
        "advantage_std",
        "ratio",
        "clip_share",
        "kl_rollout",
        "log_prob",
        "rollout_seconds",
        "reward_seconds",
        "update_seconds",
    ):
        assert f"train/{name}" in tags
    assert {"val/reward", "val/reward_se", "val/valid_share", "val/unique_share"} <= tags
    assert [event.step for event in events.Scalars("val/reward")] == [0, 2]
    assert {"rollout/best", "rollout/worst"} <= set(events.Tags()["images"])


def test_the_result_samples(done):
    model = load_model(done[0])
    assert len(model.sample(3, seed=0, steps=4)) + len(model.last_report.failures) == 3


def test_a_reward_that_always_fails_ends_it_in_a_line(tmp_path, tiny_data, tiny_ldm):
    command = train(tmp_path, tiny_data, tiny_ldm.path, "broken")
    assert command.code == 1
    assert "Traceback" not in command.output
    assert "error: the reward 'custom' failed for all 12 crystals" in command.output
    assert "AttributeError: 'Structure' object has no attribute 'no_such_thing'" in command.output


def test_missing_reward_function(tmp_path, tiny_data, tiny_ldm):
    command = train(tmp_path, tiny_data, tiny_ldm.path, "ternery")
    assert command.code == 1
    assert "error: reward custom: 'my_rewards:ternery' cannot be imported" in command.output
    assert not list(tmp_path.glob("logs/*/runs/*"))
