"""Configs: every file and experiment is built, and every mistake is one clear line."""

import json
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.runs.config import (
    fit_config,
    flatten,
    load_config,
    rename_columns,
    split_names,
    split_shares,
    to_json,
    unwrap_hub_keys,
)
from chemeleon2_jax.runs.config_checks import check_config, check_overrides
from configs import common

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
VAE, LDM = f"{CONFIGS}/train_vae.py", f"{CONFIGS}/train_ldm.py"
PREDICTOR, RL = f"{CONFIGS}/train_predictor.py", f"{CONFIGS}/train_rl.py"
EXPERIMENTS = {
    VAE: [
        *(f"{s}/{n}" for s in ("alex_mp_20", "fast") for n in ("vae_csp", "vae_dng")),
        "fast/vae_dng_20",
        *(f"{s}/{n}" for s in ("mp_20", "tiny") for n in ("vae_csp", "vae_dng")),
    ],
    LDM: [
        *(f"alex_mp_20/{n}" for n in ("ldm_composition", "ldm_null")),
        *(f"alex_mp_20_bandgap/{n}" for n in ("ldm_bandgap", "ldm_bandgap_lora")),
        *(f"fast/{n}" for n in ("ldm_distill", "ldm_flow")),
        *(f"mp_20/{n}" for n in ("ldm_composition", "ldm_null")),
        "tiny/ldm_null",
    ],
    PREDICTOR: ["alex_mp_20_bandgap/predictor_dft_band_gap", "tiny/predictor_density"],
    RL: [
        "alex_mp_20/rl_dng",
        "alex_mp_20_bandgap/rl_bandgap",
        "fast/rl_density",
        *(f"mp_20/{n}" for n in ("rl_bandgap", "rl_dng", "rl_dng_po")),
        "rl_custom_reward",
        *(f"tiny/{n}" for n in ("rl_density", "rl_elements", "rl_predictor")),
    ],
}
SPECS = [
    *(path for path in EXPERIMENTS),
    *(f"{path}:{name}" for path, names in EXPERIMENTS.items() for name in names),
]


def test_list_of_experiments_is_complete():
    files = {p.stem for p in CONFIGS.glob("train_*.py")}
    assert files == {Path(path).stem for path in EXPERIMENTS}
    for path, names in EXPERIMENTS.items():
        assert common.experiments(Path(path).stem) == names


@pytest.mark.parametrize("spec", SPECS)
def test_every_config_is_built(spec):
    config = load_config(spec)
    unwrap_hub_keys(config)
    check_config(config)
    assert config.is_locked
    assert config.experiment == spec.partition(":")[2]
    assert config.task_name == Path(spec.partition(":")[0]).stem
    # Scalars alone: each can be overridden, and JSON gives back the same config.
    flat = flatten(config)
    assert all(isinstance(value, bool | int | float | str) for value in flat.values())
    assert flatten(json.loads(to_json(config))) == flat


@pytest.mark.parametrize("spec", [s for s in SPECS if ":" in s])
def test_experiment_changes_values_but_no_keys(spec):
    base = flatten(load_config(spec.partition(":")[0]))
    changed = flatten(load_config(spec))
    assert changed.keys() == base.keys()
    assert all(type(changed[key]) is type(base[key]) for key in base)
    differing = {key for key in base if changed[key] != base[key]}
    assert differing > {"experiment", "logger.wandb.name"}


def test_published_values():
    vae, ldm = load_config(f"{VAE}:mp_20/vae_dng"), load_config(f"{LDM}:alex_mp_20/ldm_null")
    assert vae.trainer.max_epochs == 10000
    assert load_config(f"{VAE}:alex_mp_20/vae_dng").trainer.max_epochs == 5000
    assert vae.vae_module.loss_weights.to_dict() == {
        "atom_types": 1.0,
        "lengths": 1.0,
        "angles": 10.0,
        "frac_coords": 10.0,
        "kl": 1e-5,
        "fa": 0.0,
    }
    assert (vae.callbacks.early_stopping.patience, ldm.callbacks.early_stopping.patience) == (
        10,
        200,
    )
    assert ldm.data.name == "alex-mp-20"
    assert ldm.ldm_module.vae_ckpt_path == "alex_mp_20_vae"
    csp = load_config(f"{VAE}:mp_20/vae_csp").vae_module
    assert (csp.atom_type_predict, csp.loss_weights.atom_types) == (False, 0.0)


def test_fit_config_takes_every_block():
    config = load_config(f"{LDM}:tiny/ldm_null")
    config.seed = 3
    config.trainer.max_steps = 7
    config.ldm_module.optimizer.beta2 = 0.95
    config.ldm_module.scheduler.decay_steps = 5
    config.ldm_module.ema.decay = 0.9
    config.callbacks.early_stopping.patience = 4
    config.data.data_dir = "some/where/crystals"
    config.callbacks.early_stopping.min_delta = 0.1
    config.callbacks.model_checkpoint.save_top_k = 3
    config.ldm_module.scheduler.update({"monitor": "val/valid_share", "mode": "max"})
    fit = fit_config(config)
    assert (fit.early_stopping.min_delta, fit.keep_best) == (0.1, 3)
    assert (fit.scheduler.monitor, fit.scheduler.mode) == ("val/valid_share", "max")
    assert (fit.seed, fit.max_steps, fit.ema_decay) == (3, 7, 0.9)
    assert fit.optimizer.lr == config.ldm_module.optimizer.lr
    assert (fit.optimizer.beta1, fit.optimizer.beta2) == (0.9, 0.95)
    assert (fit.scheduler.name, fit.scheduler.decay_steps) == ("cosine", 5)
    assert fit.early_stopping.patience == 4
    assert fit.wandb.group == "train_ldm/crystals"
    assert fit.wandb.tags == ("ldm", "dng", "null_condition", "tiny")
    assert fit_config(load_config(VAE)).ema_decay == 0.0


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.data.batch_sze=3", "Did you mean 'data.batch_size'?"),
        ("--config.batch_size=3", "Did you mean 'data.batch_size'?"),
        ("--config.trainer.lr=1", "Did you mean 'vae_module.optimizer.lr'?"),
        ("-config.vae_module.latentdim", "Did you mean 'vae_module.latent_dim'?"),
        ("--config.zzzzzzz=1", "--print_config shows all keys"),
        ("--noconfig.vae_module.atom_type_predct", "'vae_module.atom_type_predict'"),
        ("--config.data=3", "data is a block; set one of its values: batch_size,"),
        ("--config.experiment=tiny/vae_dng", "after the config file"),
        ("--config.data.batch_size=1e3", "data.batch_size is a whole number, not '1e3'"),
        ("--config.vae_module.optimizer.lr=fast", "is a number, not 'fast'"),
        ("--config.vae_module.augmentation.rotate=maybe", "is true or false, not 'maybe'"),
        ("trainer.max_epochs=5", "start with --config., as in --config.trainer.max_epochs=5"),
        ("--trainer.max_epoch=5", "as in --config.trainer.max_epochs=5"),
    ],
)
def test_wrong_override_is_explained(argument, message):
    with pytest.raises(ConfigError) as caught:
        check_overrides(load_config(VAE), ["--print_config", argument])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_right_overrides_pass():
    arguments = [
        "--config.data.batch_size=64",
        "--config.vae_module.optimizer.lr=3",
        "--config.data.name",
        "mp-20",
        "--noconfig.vae_module.augmentation.rotate",
        "--config.vae_module.atom_type_predict=false",
        "--config.data.rename=a=b:c",
    ]
    check_overrides(load_config(VAE), arguments)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("vae_module.encoder.name", "cspnt", "Did you mean 'cspnet'?"),
        ("trainer.precision", "fp16", "one of f32, bf16"),
        ("packing.layout", "padding", "Did you mean 'padded'?"),
        ("data.batch_size", 0, "1 or more"),
        ("trainer.gradient_clip_val", -1.0, "0 or more"),
        ("vae_module.loss_weights.kl", float("nan"), "finite"),
        ("vae_module.optimizer.name", "sgd", "adamw"),
        ("vae_module.scheduler.name", "cosin", "cosine"),
        ("vae_module.encoder.nhead", 7, "multiple of vae_module.encoder.nhead"),
        ("data.rename", "band_gap", "band_gap:dft_band_gap"),
        ("data.split", "0.8,0.2", "shares of training, validation and test"),
        ("data.split", "0.8,0.1,0.2", "with the sum 1, as in 0.8,0.1,0.1"),
        ("data.split", "most,some,few", "as in 0.8,0.1,0.1"),
        ("packing.max_shapes", 9, "at most 8"),
        ("callbacks.model_checkpoint.save_top_k", 0, "1 or more"),
        ("vae_module.scheduler.mode", "least", "one of"),
        ("vae_module.noise.ratio", 0.6, "at most 0.5"),
        ("vae_module.match_rate.timeout_s", 0.0, "more than 0"),
        ("vae_module.encoder.d_model", 0, "1 or more"),
        ("vae_module.encoder.num_freqs", 0, "1 or more"),
        ("vae_module.decoder.d_model", 0, "1 or more"),
        ("vae_module.decoder.dim_feedforward", 0, "1 or more"),
        ("ldm_module.denoiser.mlp_ratio", 0.0, "more than 0"),
    ],
)
def test_wrong_value_is_explained(key, value, message):
    config = load_config(LDM if key.startswith("ldm_module") else VAE)
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ConfigError, match=message) as caught:
        check_config(config)
    assert "\n" not in str(caught.value)


def test_run_without_an_end_is_refused():
    config = load_config(VAE)
    config.trainer.max_epochs = 0
    check_config(config)  # early stopping ends it
    config.callbacks.early_stopping.patience = 0
    with pytest.raises(ConfigError, match="never end"):
        check_config(config)
    config = load_config(f"{LDM}:tiny/ldm_null")
    config.trainer.max_steps = 0
    config.callbacks.early_stopping.patience = 10
    with pytest.raises(ConfigError, match="cosine schedule needs an end"):
        check_config(config)


@pytest.mark.parametrize("end", ["trainer.max_steps", "vae_module.scheduler.decay_steps"])
def test_cosine_that_ends_within_its_warmup_is_refused(end):
    config = load_config(VAE)
    config.vae_module.scheduler.update({"name": "cosine", "warmup_steps": 100})
    check_config(config)  # the length of an epoch is known with the data
    config.update_from_flattened_dict({end: 100})
    with pytest.raises(ConfigError, match=r"vae_module\.scheduler\.warmup_steps is 100") as caught:
        check_config(config)
    assert end in str(caught.value)
    config.update_from_flattened_dict({end: 101})
    check_config(config)


def test_wandb_without_the_package_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = load_config(VAE)
    config.logger.wandb.project = "crystals"
    with pytest.raises(ConfigError, match="pip install wandb"):
        check_config(config)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere/train_vae.py", "no config file 'nowhere/train_vae.py'"),
        (f"{VAE}:mp20/vae_dng", "Did you mean 'mp_20/vae_dng'?"),
        (f"{VAE}:tiny/ldm_null", "train_vae has no experiment 'tiny/ldm_null'"),
        (str(CONFIGS / "common.py"), "no function get_config"),
    ],
)
def test_wrong_config_file_is_explained(spec, message):
    with pytest.raises(ConfigError) as caught:
        load_config(spec)
    assert message in str(caught.value)


def test_small_readers():
    assert split_names("") == ()
    assert split_names(" a, b ,") == ("a", "b")
    assert rename_columns("") == {}
    assert rename_columns("band_gap:dft_band_gap, e : energy") == {
        "band_gap": "dft_band_gap",
        "e": "energy",
    }
    assert split_shares("") == ()
    assert split_shares("0.8, 0.2, 0") == (0.8, 0.2, 0.0)
    config = ConfigDict({"a": {"b": "${hub:mp_20_vae}", "c": "hub:x", "d": 1}})
    unwrap_hub_keys(config)
    assert config.a.to_dict() == {"b": "mp_20_vae", "c": "hub:x", "d": 1}
