"""Keys of a config with the comments of its files."""

from pathlib import Path

from chemeleon2_jax import train
from chemeleon2_jax.runs.config import flatten, load_config
from chemeleon2_jax.runs.explain import explain
from tests.tiny import LDM_SPEC, RL_SPEC, ROOT

CONFIGS = ROOT / "configs"


def lines_of(spec):
    file = Path(spec.partition(":")[0])
    return explain(load_config(spec), [file, CONFIGS / "common.py"]).splitlines()


def test_every_key_has_a_line_with_its_value():
    lines = lines_of(RL_SPEC)
    assert [line.partition(" = ")[0] for line in lines] == list(flatten(load_config(RL_SPEC)))
    assert "data.batch_size = 16" in "\n".join(lines)


def test_comments_behind_and_above_a_key():
    lines = {line.partition(" = ")[0]: line for line in lines_of(LDM_SPEC)}
    assert lines["trainer.save_every_n_steps"] == (
        "trainer.save_every_n_steps = 400                  # a killed run loses at most so many "
        "steps"
    )
    assert lines["ldm_module.ema.decay"].endswith("= 0.9999                     # 0 for off")
    above = lines["ldm_module.condition_module.condition_type"]
    assert 'Conditions: "name:kind", comma-separated' in above
    assert above.endswith("are computed from the crystals.")
    assert "#" not in lines["ldm_module.optimizer.lr"]
    assert lines["data.data_dir"].endswith("# folder with train/val/test.csv[.gz]; replaces `name`")


def test_experiments_are_listed_by_stage():
    listed = train.list_experiments(CONFIGS)
    assert f"{CONFIGS}/train_ldm.py:\n    alex_mp_20/ldm_composition\n" in listed
    for name in ("mp_20/rl_dng_po", "tiny/predictor_density", "fast/vae_csp", "rl_custom_reward"):
        assert f"    {name}" in listed
    assert "in the checkout" in train.list_experiments(Path("nowhere"))
