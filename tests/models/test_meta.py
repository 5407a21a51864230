"""The meta of a checkpoint, to JSON and back; other versions and what is damaged."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chemeleon2_jax.common.version import __version__
from chemeleon2_jax.models.condition_kinds import FloatCondition
from chemeleon2_jax.models.latents import ChannelMoments
from chemeleon2_jax.models.meta import FORMAT_VERSION, LDMMeta, ModelMeta, TorchSource
from chemeleon2_jax.models.sizes import (
    ConditionSizes,
    DiffusionConfig,
    DiTSizes,
    LoRASizes,
    PredictorSizes,
    Target,
    VAESizes,
)

VAE = ModelMeta(stage="train_vae", vae=VAESizes(), size_table=(0, 2, 5), config={"seed": 3})
CONDITIONS = ConditionSizes((FloatCondition("gap", mean=1.0, std=2.0),), hidden_dim=768)
LDM = replace(
    VAE,
    stage="train_ldm",
    vae_config={"seed": 1},
    ldm=LDMMeta(
        dit=DiTSizes(conditions=CONDITIONS, lora=LoRASizes(2, 4.0, ("mlp.fc1",))),
        diffusion=DiffusionConfig(target="x_0"),
        latent_std=1.5,
        sample_weights="ema",
    ),
)
PREDICTOR = replace(
    VAE, stage="train_predictor", predictor=PredictorSizes(8, 512, (Target("gap", 1.0, 2.0),))
)
SOURCE = TorchSource(
    file="a.ckpt", ema=True, dtypes={"a.weight": "bfloat16"}, notes=("b",), epoch=2, global_step=9
)
CHANNELS = replace(
    LDM, ldm=replace(LDM.ldm, latent_channels=ChannelMoments((0.5,) * 8, (2.0,) * 8))
)
METAS = {
    "vae": VAE,
    "ldm": LDM,
    "channels": CHANNELS,
    "predictor": PREDICTOR,
    "converted": replace(LDM, source=SOURCE, config={}, vae_config={}),
    "floors": replace(LDM, stage="train_rl", validation_floors={"volume": -1.0}),
}


@pytest.mark.parametrize("name", METAS)
def test_to_json_and_back(name):
    entries = json.loads(json.dumps(METAS[name].to_json()))
    assert entries == METAS[name].to_json()
    assert ModelMeta.from_json(entries) == METAS[name]


def test_entries_are_those_that_older_packages_read():
    assert METAS["ldm"].to_json().keys() == {
        *("format_version", "package_version", "stage", "vae", "size_table", "config"),
        *("vae_config", "dit", "diffusion", "latent_std", "sample_weights"),
    }
    assert METAS["channels"].to_json().keys() - METAS["ldm"].to_json().keys() == {"latent_channels"}


def test_without_a_version_it_is_of_version_0():
    entries = LDM.to_json()
    del entries["format_version"], entries["package_version"]
    meta = ModelMeta.from_json(entries)
    assert (meta.format_version, meta.package_version) == (0, "")
    assert replace(meta, format_version=FORMAT_VERSION, package_version=__version__) == LDM
    assert meta.to_json() == LDM.to_json()  # what is written is of this version


def test_a_newer_version_is_read_unless_an_entry_is_unknown():
    newer = {**LDM.to_json(), "format_version": FORMAT_VERSION + 1, "package_version": "9.8"}
    assert ModelMeta.from_json(newer).ldm == LDM.ldm
    for entry, problem in (
        ({"latent_mean": [0.0]}, "an unknown entry 'latent_mean'"),
        ({"dit": {**newer["dit"], "norm": "rms"}}, "a wrong entry 'dit'"),
    ):
        with pytest.raises(ValueError, match=rf"{problem}.*: version {FORMAT_VERSION + 1} .* 9\.8"):
            ModelMeta.from_json(newer | entry)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"latent_mean": [0.0]}, "an unknown entry 'latent_mean'"),
        ({"latent_mean": 0.0, "format_version": "2"}, "an unknown entry 'latent_mean'"),
        ({"format_version": "2"}, "a wrong entry 'format_version'"),
        ({"stage": 3}, "a wrong entry 'stage'"),
        ({"config": []}, "a wrong entry 'config'"),
        ({"source": {"file": "a", "notes": [], "more": 1}}, "a wrong entry 'source'"),
        ({"latent_channels": {"mean": [0.0], "std": [-1.0]}}, "a wrong entry 'latent_channels'"),
        ({"latent_channels": {"mean": [0.0], "std": [1.0]}}, "1 channels, where the VAE has 8"),
        ({"size_table": [0, 1.5]}, "a wrong entry 'size_table'"),
        ({"size_table": [0] * 10_001 + [1]}, "more than 10000 atoms"),
        ({"vae": {**VAESizes().to_dict(), "decoder": {"num_layers": 1001}}}, "1001 layers"),
    ],
)
def test_what_is_damaged(entry, problem):
    with pytest.raises(ValueError, match=f"its meta has .*{problem}.*: the checkpoint is damaged"):
        ModelMeta.from_json({**LDM.to_json(), **entry})


@pytest.mark.parametrize("name", ["stage", "vae", "size_table", "config", "diffusion"])
def test_what_is_missing(name):
    entries = {k: v for k, v in LDM.to_json().items() if k != name}
    with pytest.raises(ValueError, match=f"no entry {name!r}"):
        ModelMeta.from_json(entries)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("encoder", "targets", "name", "rank")), inner)
    ),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(sorted(METAS["converted"].to_json())), value=_VALUES)
def test_any_value_of_an_entry(name, value):
    """A meta, or one kind of error."""
    with contextlib.suppress(ValueError):
        ModelMeta.from_json({**METAS["converted"].to_json(), name: value})
