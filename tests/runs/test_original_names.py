"""What a user of Chemeleon2 types is answered with its name here."""

import pytest

from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.runs.command_line import Alias, take_aliases
from chemeleon2_jax.runs.config import load_config
from chemeleon2_jax.runs.config_checks import check_config, check_overrides
from chemeleon2_jax.runs.original_names import (
    EVALUATE_FLAGS,
    SAMPLE_FLAGS,
    explain_argument,
    take_values,
)
from tests.tiny import LDM_SPEC, ROOT

CONFIGS = f"{ROOT}/configs"


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("experiment=mp_20/ldm_null", f"--config={CONFIGS}/train_ldm.py:mp_20/ldm_null"),
        ("experiment=mp_20/vae_dng", f"--config={CONFIGS}/train_vae.py:mp_20/vae_dng"),
        ("--cfg", "--print_config prints the resolved config"),
        ("denoiser=dit_l", "--config.ldm_module.denoiser.size=L"),
        ("ldm_module/denoiser=dit_xl", "--config.ldm_module.denoiser.size=XL"),
        ("size=dit_l", "--config.ldm_module.denoiser.size=L"),
        ("precision=bf16-mixed", "--config.trainer.precision=bf16"),
        ("trainer.max_epochs=5", "--config.trainer.max_epochs=5"),
        ("--trainer.max_epochs=5", "--config.trainer.max_epochs=5"),
        ("++trainer.max_epochs=5", "--config.trainer.max_epochs=5"),
        ("max_epochs=5", "--config.trainer.max_epochs=5"),
        ("trainer.min_epochs=5", "leave it out"),
        ("callbacks.ema.decay=0.99", "--config.ldm_module.ema.decay"),
        ("logger.wandb.offline=True", "WANDB_MODE=offline"),
        ("ckpt_path=x.ckpt", "--config.resume_from=<run folder>"),
        ("frobnicate=5", ""),
        ("5", ""),
    ],
)
def test_arguments(argument, expected):
    text = explain_argument(argument, "", spec=LDM_SPEC)
    assert text.startswith(expected) if expected.startswith("--") else expected in text
    assert bool(text) == bool(expected)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.trainer.min_epochs=3", r"'trainer\.min_epochs'; here: leave it out"),
        ("--config.callbacks.ema.decay=0.9", r"--config\.ldm_module\.ema\.decay"),
        ("--config.logger.wandb.offline=True", "WANDB_MODE=offline"),
        ("--config.ckpt_path=x", r"--config\.resume_from"),
    ],
)
def test_keys(argument, message):
    with pytest.raises(ConfigError, match=message):
        check_overrides(load_config(LDM_SPEC), [argument])


def test_values_are_taken_and_said():
    config = load_config(LDM_SPEC)
    config.ldm_module.denoiser.size, config.trainer.precision = "dit_xl", "bf16-mixed"
    assert take_values(config) == [
        "ldm_module.denoiser.size = dit_xl is XL here",
        "trainer.precision = bf16-mixed is bf16 here",
    ]
    assert (config.ldm_module.denoiser.size, config.trainer.precision) == ("XL", "bf16")
    check_config(config)
    assert take_values(config) == []


def test_flags_of_sample_and_evaluate(capsys):
    typed = ["sample", "--ldm_ckpt_path=a=b", "--vae_ckpt_path", "c", "--num_samples=3", "rest"]
    assert take_aliases(typed, SAMPLE_FLAGS) == [
        "sample",
        "--model=a=b",
        "--vae=c",
        "--num_samples=3",
        "rest",
    ]
    assert capsys.readouterr().err == (
        "--ldm_ckpt_path is --model=a=b here\n--vae_ckpt_path is --vae=c here\n"
    )
    typed = ["--structure_path=x", "--reference_dataset=mp-20", "--output_file=out/metrics.csv"]
    assert take_aliases(typed, EVALUATE_FLAGS) == [
        "--structures=x",
        "--reference=mp-20",
        "--output_dir=out/metrics",
    ]
    for flag in ("--device=cuda", "--device", "--phase_diagram=x.pkl", "--stability_threshold=0.1"):
        with pytest.raises(ConfigError, match=f"^{flag.partition('=')[0]}: "):
            take_aliases([flag], {**SAMPLE_FLAGS, **EVALUATE_FLAGS})


def test_own_flags_are_never_aliases():
    assert take_aliases(["--v=1"], {"v": Alias("verbosity")}) == ["--v=1"]
