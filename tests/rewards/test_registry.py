"""The registry of rewards is the config's block, and the README's table."""

from __future__ import annotations

import re
import subprocess
import sys

from chemeleon2_jax.rewards.build import _load
from chemeleon2_jax.rewards.registry import REWARDS, config_blocks
from chemeleon2_jax.runs.config import load_config
from tests.tiny import ROOT


def test_every_reward_is_there():
    for name in REWARDS:
        assert callable(_load(name))


def test_the_config_has_a_block_for_each():
    options = load_config(f"{ROOT}/configs/train_rl.py").rl_module.reward_fn.to_dict()
    blocks = {key: value for key, value in options.items() if isinstance(value, dict)}
    assert blocks == config_blocks()
    assert set(options["components"].split(",")) <= set(REWARDS)
    assert blocks["energy"] == {
        "weight": 1.0,
        "normalize_fn": "norm",
        "floor": "-1",
        "model": "nequix",
        "model_path": "",
        "model_kwargs": "",
        "hull": "",
        "hull_corrected": "",
        "quantity": "e_above_hull",
        "relax_steps": 0,
    }
    assert blocks["volume"] == {
        "weight": 1.0,
        "normalize_fn": "",
        "floor": "",
        "target": 0.0,
        "per_atom": True,
    }


def test_the_readme_lists_all_and_their_options():
    table = re.search(r"\| reward \|.*?\n\n", (ROOT / "README.md").read_text(), re.DOTALL)
    rows = [row.split("|") for row in table[0].splitlines()[2:] if row]
    listed = {}
    for _, rewards, _, options, _ in rows:
        for name in re.findall(r"`(\w+)`", rewards):
            listed[name] = set(re.findall(r"`(\w+)`", options))
    assert listed == {name: set(reward.options()) for name, reward in REWARDS.items()}


def test_the_registry_is_light():
    """It is imported whenever a config is loaded."""
    program = (
        "import sys; from chemeleon2_jax.rewards.registry import config_blocks; config_blocks()\n"
        "sys.exit(any(name in sys.modules for name in ('jax', 'numpy', 'pymatgen')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False, cwd=ROOT).returncode == 0
