"""The registry of published checkpoints, and their table."""

import subprocess
import sys

import pytest

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.pretrained import hub
from chemeleon2_jax.torch_format.size_tables import published_size_table
from tests.pretrained.hub_server import (
    COMMIT,
    CONTENT,
    FILE,
    KEY,
    SHA256,
    convert_nothing,
    copy_weights,
    drop,
)


def test_six_checkpoints_are_published() -> None:
    keys = [f"{data}_{kind}" for data in ("mp_20", "alex_mp_20") for kind in ("vae", "ldm_base")]
    keys += ["mp_20_ldm_rl", "alex_mp_20_ldm_rl"]
    assert sorted(hub.REGISTRY) == sorted(keys)
    assert len({published.path for published in hub.REGISTRY.values()}) == len(hub.REGISTRY) == 6
    for key, published in hub.REGISTRY.items():
        data, _, kind = key.partition("_20_")
        stage = kind.partition("_")[0]
        assert published.key == key
        assert published.stage == stage
        assert published.path.startswith(f"v0.0.1/{data}_20/{stage}/")
        assert published.path.endswith(".ckpt")
        assert ("rl" in published.path) == key.endswith("rl")
        assert published.vae_heads == 8
        assert len(published_size_table(published.size_table)) == 21


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(CheckpointError, match=r"no published .* 'mp20_vae': did you mean 'mp_20_v"):
        hub.fetch("mp20_vae")
    with pytest.raises(CheckpointError, match="did you mean"):
        hub.converted("alex_mp_20_rl", convert_nothing)


def test_keys_are_recognised_also_pasted() -> None:
    assert hub.hub_key("mp_20_ldm_rl") == "mp_20_ldm_rl"
    assert hub.hub_key("${hub:mp_20_ldm_rl}") == "mp_20_ldm_rl"
    assert hub.hub_key("logs/run") is None
    with pytest.raises(CheckpointError, match="did you mean 'mp_20_ldm_rl'"):
        hub.hub_key("${hub:mp_20_ldm_rll}")


def test_the_import_is_light_and_reads_nothing() -> None:
    code = (
        "import sys, chemeleon2_jax.pretrained.hub as hub\n"
        "assert not {'huggingface_hub', 'jax', 'pymatgen'} & sys.modules.keys()\n"
        "assert '_entries' not in vars(hub.REGISTRY)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_table_shows_the_state(server, cache) -> None:
    before = {line.split()[0]: line for line in hub.describe().splitlines()}
    assert list(before)[2:-1] == list(hub.REGISTRY)
    assert before[KEY].split()[-3:] == ["-", "-", "no"]
    assert server.requests == []
    hub.fetch(KEY)
    assert hub.describe().splitlines()[2].endswith("  downloaded")
    hub.converted(KEY, copy_weights)
    row = hub.describe().splitlines()[2]
    assert row.endswith("  downloaded, converted")
    for text in ("0.3 MB", SHA256[:12], COMMIT[:12], FILE.path):
        assert text in row
    assert FILE.repository in hub.describe()
    drop(cache, CONTENT, hub.REGISTRY["mp_20_ldm_rl"].path)
    rows = {line.split()[0]: line for line in hub.describe().splitlines()}
    assert rows["mp_20_ldm_rl"].endswith("  downloaded")
