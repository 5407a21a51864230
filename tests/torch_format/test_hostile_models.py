"""Sound archives with hostile or absurd content raise one CheckpointError, within bounds."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.inference.api import load_model
from chemeleon2_jax.torch_format.from_torch import convert_file
from chemeleon2_jax.torch_format.torch_writer import write_torch_file
from tests.torch_format import original_files
from tests.torch_format.archives import Built, Call, Global, Raw, Stored, pack, tensor

INF = float("inf")


def refuse(path: Any, content: Any, match: str) -> None:
    write_torch_file(path, content)
    with pytest.raises(CheckpointError, match=match) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()


def changed(content: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return the content with another value at a dotted key of its hyper_parameters."""
    *parents, last = key.split(".")
    hyper = dict(content["hyper_parameters"])
    node = hyper
    for parent in parents:
        node[parent] = dict(node[parent])
        node = node[parent]
    node[last] = value
    return {**content, "hyper_parameters": hyper}


@pytest.mark.parametrize(
    ("name", "key", "value", "match"),
    [
        ("vae", "encoder.nhead", [8], "number of heads"),
        ("vae", "encoder.nhead", 10**400, "number of heads"),
        ("vae", "decoder.nhead", 2.0, "number of heads"),
        ("vae", "encoder.activation", "relu", "activation"),
        ("vae", "decoder.norm_first", False, "norm_first"),
        ("ldm", "denoiser.num_heads", "many", "number of heads"),
        ("ldm", "diffusion_configs.diffusion_steps", INF, "num_steps"),
        ("ldm", "diffusion_configs.diffusion_steps", 10**13, "num_steps"),
        ("ldm", "diffusion_configs.diffusion_steps", [1], "num_steps"),
        ("ldm", "diffusion_configs.noise_schedule", "nose", "nose"),
        ("ldm_conditional", "condition_module.drop_prob", 10**400, "drop_prob"),
        ("ldm_conditional", "condition_module.stats", {"dft_band_gap": 3}, "conditions"),
        (
            "ldm_conditional",
            "condition_module.stats",
            {"dft_band_gap": {"mean": 10**400, "std": 1}},
            "mean",
        ),
        ("ldm_conditional", "condition_module.condition_type", [1], "condition_type"),
        ("ldm_lora", "lora_configs.lora_alpha", 10**400, "lora_alpha"),
        ("predictor", "target_conditions", {"a": {"mean": "x", "std": 1}, "b": {}}, "mean"),
        ("predictor", "target_conditions", {"a": 1, "b": 2}, "target_conditions"),
    ],
)
def test_options_that_no_model_has(name, key, value, match, tmp_path):
    refuse(tmp_path / "a.ckpt", changed(original_files.CONTENTS[name](), key, value), match)


@pytest.mark.parametrize("kind", ["relu", "gelu"])
def test_activations_that_are_functions(kind, tmp_path):
    """Functions as activations of a pickled layer: `gelu` is the exact one."""
    state = original_files.vae_content()["state_dict"]
    tensors = {
        name: tensor(Stored("torch.FloatStorage", str(i), array.size), array.shape, steps(array))
        for i, (name, array) in enumerate(state.items())
    }
    layer = Built(
        Call("torch.nn.modules.transformer.TransformerEncoderLayer", ()),
        {"norm_first": True, "activation": Global(f"torch.nn.functional.{kind}")},
    )
    hyper = {"encoder": layer, "decoder": {"nhead": 2}}
    content = {"state_dict": tensors, "hyper_parameters": hyper}
    storages = {str(i): array.tobytes() for i, array in enumerate(state.values())}
    path = pack(tmp_path / "a.ckpt", content, storages)
    with pytest.raises(CheckpointError, match=f"activation {kind}"):
        load_model(path)


def steps(array: np.ndarray) -> tuple[int, ...]:
    """Strides in elements."""
    return tuple(step // array.itemsize for step in array.strides)


@pytest.mark.parametrize("name", ["__class__", "items", "a/b", "", "1st", "x" * 20 + "\x1b[31m"])
def test_names_of_conditions(name, tmp_path):
    content = original_files.CONTENTS["ldm_conditional"]()
    kinds = content["hyper_parameters"]["condition_module"]["condition_type"]
    renamed = {name if k == "elements" else k: v for k, v in kinds.items()}
    state = OrderedDict(
        (k.replace("encoders.elements.", f"encoders.{name}."), v)
        for k, v in content["state_dict"].items()
    )
    content = changed({**content, "state_dict": state}, "condition_module.condition_type", renamed)
    refuse(tmp_path / "a.ckpt", content, "condition|cannot")


def test_names_of_tensors_reach_no_terminal(tmp_path):
    content = original_files.vae_content()
    content["state_dict"]["encoder.\x1b[31m\nerror: all fine"] = np.zeros(2, np.float32)
    refuse(tmp_path / "a.ckpt", content, "no known model")


@pytest.mark.parametrize("table", [[10**30], [2**63 - 1] * 3, [], [0], [-1, 2], "x", [1.5]])
def test_size_tables(table, tmp_path):
    content = {**original_files.ldm_content(), "chemeleon2_jax": {"size_table": table}}
    refuse(tmp_path / "a.ckpt", content, "size_table")


def test_layers_out_of_nowhere(tmp_path):
    content = original_files.vae_content()
    name = "encoder.transformer.layers.99999.norm1.weight"
    content["state_dict"][name] = np.zeros(2, np.float32)
    refuse(tmp_path / "a.ckpt", content, "layer 99999")
    content["state_dict"] = {
        **original_files.vae_content()["state_dict"],
        **{name.replace("99999", str(i)): np.zeros(2, np.float32) for i in range(2000)},
    }
    refuse(tmp_path / "a.ckpt", content, "layer")


def test_a_vae_path_that_is_none(tmp_path):
    content = original_files.ldm_content()
    del content["hyper_parameters"]["vae"]
    for path in ("x" * 1000, "a\0b", "..", "/"):
        refuse(tmp_path / "a.ckpt", changed(content, "vae_ckpt_path", path), "heads")


def test_files_that_name_each_other(tmp_path):
    content = original_files.ldm_content(with_vae=False)
    write_torch_file(tmp_path / "b.ckpt", changed(content, "vae_ckpt_path", "a.ckpt"))
    refuse(
        tmp_path / "a.ckpt", changed(content, "vae_ckpt_path", "b.ckpt"), "does not hold its VAE"
    )


_BOUNDED = """
import resource, sys
from chemeleon2_jax.torch_format.from_torch import convert_file
from chemeleon2_jax.common.errors import CheckpointError
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
for path in sys.argv[1:]:
    try:
        convert_file(path)
        print("converted")
    except CheckpointError as error:
        print(str(error).partition(": ")[2])
# Not ru_maxrss, which a new program inherits from the one that started it.
status = open("/proc/self/status").read()
print(int(status.partition("VmHWM:")[2].split()[0]) // 1024)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's /proc")
def test_small_files_take_little(tmp_path):
    """Every weight of a large model a view of one number; pairs nested 28 times in themselves."""
    state = original_files.vae_content()["state_dict"]
    wide = {}
    for name, array in state.items():
        shape = tuple(4096 if n == original_files.WIDTH else n for n in array.shape)
        shape = tuple(3 * 4096 if n == 3 * original_files.WIDTH else n for n in shape)
        wide[name] = tensor(Stored("torch.FloatStorage", "0", 1), shape, (0,) * len(shape))
    views = {"state_dict": wide, "hyper_parameters": original_files.VAE_OPTIONS}
    nested = Raw(b")" + 28 * b"2\x86")  # a pair of itself, 28 times over
    endless = {"state_dict": {}, "hyper_parameters": {"encoder": nested}}
    stored = Stored("torch.FloatStorage", "0", 1)
    endless["state_dict"] = {
        name: tensor(stored, array.shape, (0,) * array.ndim) for name, array in state.items()
    }
    files = [
        pack(tmp_path / "views.ckpt", views, {"0": bytes(4)}),
        pack(tmp_path / "endless.ckpt", endless, {"0": bytes(4)}),
    ]
    assert max(path.stat().st_size for path in files) < 50_000
    done = subprocess.run(
        [sys.executable, "-c", _BOUNDED, *map(str, files)],
        capture_output=True,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = done.stdout.splitlines()
    assert "views of the same numbers" in answers[0]
    assert "too many" in answers[1]
    assert int(answers[2]) < 1000  # MB, JAX included


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.just("composition")
    | st.just("float"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(("nhead", "mean", "std", "r", "elements")), inner, max_size=3
        )
    ),
    max_leaves=6,
)
_KEYS = (
    "denoiser",
    "denoiser.num_heads",
    "vae",
    "vae.encoder",
    "vae.decoder.nhead",
    "diffusion_configs",
    "diffusion_configs.diffusion_steps",
    "condition_module",
    "condition_module.condition_type",
    "condition_module.stats",
    "condition_module.num_classes",
    "condition_module.hidden_dim",
    "lora_configs",
    "vae_ckpt_path",
)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(key=st.sampled_from(_KEYS), value=_VALUES)
def test_any_options(tmp_path_factory, key, value):
    """Any options give a model or one error."""
    path = tmp_path_factory.getbasetemp() / "any_options.ckpt"
    write_torch_file(path, changed(original_files.CONTENTS["ldm_conditional"](), key, value))
    with contextlib.suppress(CheckpointError):
        convert_file(path)
