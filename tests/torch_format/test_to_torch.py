"""Back to PyTorch: converted tensors bit for bit, and models trained here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.inference.api import load_model
from chemeleon2_jax.models.encoders.registry import EncoderSizes, TransformerSizes
from chemeleon2_jax.models.sizes import LoRASizes, VAESizes
from chemeleon2_jax.pretrained.loading import ldm_of, open_model
from chemeleon2_jax.torch_format import files
from chemeleon2_jax.torch_format.files import write_orbax, write_torch
from chemeleon2_jax.torch_format.from_torch import convert_file
from chemeleon2_jax.torch_format.model import Options
from chemeleon2_jax.torch_format.names import vae_entries
from chemeleon2_jax.torch_format.torch_file import open_torch_file
from chemeleon2_jax.torch_format.torch_writer import write_torch_file
from chemeleon2_jax.training.checkpoint_writer import write_checkpoint
from chemeleon2_jax.training.plain_trees import flat_names
from tests.torch_format import original_files
from tests.torch_format.original_files import CONTENTS

OPTIONS = Options(size_table=(0, 3, 2, 1))


def read(path: Path) -> dict[str, Any]:
    """Return a file's content, tensors as arrays."""

    def arrays(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: arrays(item) for key, item in value.items()}
        return value.read() if hasattr(value, "read") else value

    with open_torch_file(path) as file:
        return {str(key): arrays(value) for key, value in file.content.items()}


def there_and_back(folder: Path, content: Any) -> dict[str, Any]:
    """Return the content after torch -> orbax -> torch."""
    folder.mkdir(exist_ok=True)
    write_torch_file(folder / "model.ckpt", content)
    write_orbax(convert_file(folder / "model.ckpt", OPTIONS), folder / "orbax")
    write_torch(open_model(folder / "orbax"), folder / "back.ckpt")
    return read(folder / "back.ckpt")


def assert_same_bits(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(actual) == list(expected)
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype, name
        assert actual[name].shape == array.shape, name
        assert actual[name].tobytes() == np.ascontiguousarray(array).tobytes(), name


@pytest.mark.parametrize("name", CONTENTS)
def test_every_tensor_comes_back(name, tmp_path):
    content = CONTENTS[name]()
    first = next(iter(content["state_dict"].values()))
    first.flat[:2] = [-0.0, np.nan][: first.size] if first.ndim else first
    back = there_and_back(tmp_path, content)
    state = dict(content["state_dict"])
    # What the original registers last comes last.
    order = sorted(state, key=lambda n: n.startswith("condition_module."))
    assert_same_bits(back["state_dict"], {n: state[n] for n in order})
    again = convert_file(tmp_path / "back.ckpt", OPTIONS)
    model = convert_file(tmp_path / "model.ckpt", OPTIONS)
    for name in ("stage", "vae", "ldm", "predictor", "size_table"):
        assert getattr(again.meta, name) == getattr(model.meta, name), name


def test_half_precision_comes_back(tmp_path):
    content = original_files.vae_content()
    state = content["state_dict"]
    for i, name in enumerate(state):
        state[name] = state[name].astype((np.float32, np.float16, ml_dtypes.bfloat16)[i % 3])
    assert_same_bits(there_and_back(tmp_path, content)["state_dict"], state)


def test_torch_loads_it(tmp_path):
    torch = pytest.importorskip("torch")
    for name, make in CONTENTS.items():
        content = make()
        there_and_back(tmp_path / name, content)
        loaded = torch.load(tmp_path / name / "back.ckpt", weights_only=True)
        assert set(loaded["state_dict"]) == set(content["state_dict"])
        for key, array in content["state_dict"].items():
            np.testing.assert_array_equal(loaded["state_dict"][key].numpy(), array)
        assert isinstance(loaded["hyper_parameters"], dict)


def test_options_of_an_ldm(tmp_path):
    hyper = there_and_back(tmp_path, CONTENTS["ldm_conditional"]())["hyper_parameters"]
    assert hyper["denoiser"] == {
        "latent_dim": 4,
        "hidden_size": 12,
        "depth": 2,
        "num_heads": 3,
        "learn_sigma": True,
        "mlp_ratio": 2.0,
    }
    assert hyper["condition_module"] == original_files.CONDITIONS
    assert hyper["diffusion_configs"]["learn_sigma"] is True


def test_options_of_adapters(tmp_path):
    hyper = there_and_back(tmp_path, CONTENTS["ldm_lora"]())["hyper_parameters"]
    lora = hyper["lora_configs"]
    assert (lora["r"], lora["lora_alpha"]) == (2, 8.0)
    assert sorted(lora["target_modules"]) == ["mlp.fc1", "mlp.fc2"]


def test_options_of_a_vae_and_a_predictor(tmp_path):
    hyper = there_and_back(tmp_path / "p", CONTENTS["predictor"]())["hyper_parameters"]
    assert hyper["target_conditions"] == original_files.TARGETS
    assert hyper["vae"]["encoder"]["nhead"] == 2
    assert hyper["vae"]["decoder"]["nhead"] == 4
    hyper = there_and_back(tmp_path / "v", CONTENTS["vae_cspnet"]())["hyper_parameters"]
    assert hyper["encoder"] == {"hidden_dim": 16, "num_layers": 2, "num_freqs": 3, "ln": True}


# --- models trained here --------------------------------------------------------------------------


def test_a_trained_vae_goes_there(tiny_vae, tmp_path):
    write_torch(open_model(tiny_vae.path), tmp_path / "vae.ckpt")
    trained, converted = (load_model(p).parts for p in (tiny_vae.path, tmp_path / "vae.ckpt"))
    assert converted.sizes == trained.sizes
    jax.tree.map(np.testing.assert_array_equal, converted.params, trained.params)


def test_a_trained_ldm_goes_there_with_its_eps(tiny_ldm, tmp_path):
    """Of per-token eps and variance, eps is written, from the weights for sampling."""
    path = tmp_path / "ldm.ckpt"
    report = write_torch(open_model(tiny_ldm.path), path)
    assert any("learn_sigma = false" in note for note in report.notes)
    here, there = load_model(tiny_ldm.path), load_model(path)
    assert here.parts.sizes.learn_sigma
    assert here.parts.sizes.variance_layout == "per_token"
    assert not there.parts.sizes.learn_sigma
    assert there.parts.latent_std == np.float32(here.parts.latent_std)
    width = here.parts.sizes.latent_dim
    rng = np.random.default_rng(0)
    latents = [rng.normal(size=(n, width)).astype(np.float32) for n in (3, 1, 5)]
    eps = [model.denoise(latents, [5, 400, 999]) for model in (here, there)]
    for trained, converted in zip(*eps, strict=True):
        np.testing.assert_allclose(converted, trained, rtol=0, atol=1e-5)


def test_the_size_table_comes_back(tiny_ldm, tmp_path):
    write_torch(open_model(tiny_ldm.path), tmp_path / "ldm.ckpt")
    here, there = load_model(tiny_ldm.path), load_model(tmp_path / "ldm.ckpt")
    np.testing.assert_array_equal(there.parts.size_table, here.parts.size_table)


# --- adapters -------------------------------------------------------------------------------------


def with_lora(model: Any, folder: Path, targets: tuple[str, ...]) -> Path:
    """Write a checkpoint of an LDM with adapters that are not 0."""
    sizes = replace(model.meta.ldm.dit, lora=LoRASizes(2, 4.0, targets))
    rng = np.random.default_rng(0)

    def add(tree: Any, path: str = "") -> Any:
        if "kernel" in tree and sizes.lora.applies_to(path[1:]):
            num_in, num_out = tree["kernel"].shape
            a, b = rng.normal(size=(num_in, 2)), rng.normal(size=(2, num_out))
            return {**tree, "lora_a": np.float32(0.3 * a), "lora_b": np.float32(0.3 * b)}
        return {k: add(v, f"{path}.{k}") if isinstance(v, dict) else v for k, v in tree.items()}

    items = {"params": add(model.trees["params"]), "vae": model.trees["vae"]}
    meta = replace(model.meta, ldm=replace(model.meta.ldm, dit=sizes))
    write_checkpoint(folder, items=items, meta=meta.to_json())
    return folder


def denoised(path: Path) -> np.ndarray:
    model = load_model(path)
    rng = np.random.default_rng(0)
    latents = [rng.normal(size=(n, model.parts.sizes.latent_dim)) for n in (3, 2)]
    return np.concatenate(model.denoise(latents, [10, 700]))


@pytest.mark.parametrize("targets", [("mlp.fc1", "attention.out", "final"), ("attention.qkv",)])
def test_merged_adapters_do_the_same(targets, tmp_path):
    write_torch_file(tmp_path / "model.ckpt", CONTENTS["ldm"]())
    plain = convert_file(tmp_path / "model.ckpt", OPTIONS)
    folder = with_lora(plain, tmp_path / "adapted", targets)
    write_orbax(open_model(folder), tmp_path / "merged", merge_lora=True)
    assert ldm_of(open_model(tmp_path / "merged")).sizes.lora is None
    write_torch(open_model(folder), tmp_path / "back.ckpt", merge_lora=True)
    expected = denoised(folder)
    assert np.abs(expected - denoised(tmp_path / "model.ckpt")).max() > 0.01
    for path in (tmp_path / "merged", tmp_path / "back.ckpt"):
        np.testing.assert_allclose(denoised(path), expected, rtol=0, atol=1e-5)


def test_adapters_that_the_original_cannot_have_are_merged(tmp_path):
    write_torch_file(tmp_path / "model.ckpt", CONTENTS["ldm"]())
    plain = convert_file(tmp_path / "model.ckpt", OPTIONS)
    folder = with_lora(plain, tmp_path / "adapted", ("attention.qkv", "mlp.fc1"))
    report = write_torch(open_model(folder), tmp_path / "back.ckpt")
    assert any("merged" in note for note in report.notes)
    np.testing.assert_allclose(
        denoised(tmp_path / "back.ckpt"), denoised(folder), rtol=0, atol=1e-5
    )


def test_adapters_of_attention_act_there_too(tmp_path):
    """In the original they never act: they are merged into the weights."""
    write_torch_file(tmp_path / "model.ckpt", CONTENTS["ldm"]())
    plain = convert_file(tmp_path / "model.ckpt", OPTIONS)
    folder = with_lora(plain, tmp_path / "adapted", ("attention.out", "mlp.fc1"))
    report = write_torch(open_model(folder), tmp_path / "back.ckpt")
    assert any("2 adapters on attn.out_proj" in note for note in report.notes)
    state = read(tmp_path / "back.ckpt")["state_dict"]
    name = "denoiser.base_model.model.blocks.0.attn.out_proj"
    assert not state[f"{name}.lora_B.default.weight"].any()
    assert state[f"{name}.lora_A.default.weight"].any()
    layer = open_model(folder).restore("params")["blocks"]["0"]["attention"]["out"]
    expected = layer["kernel"] + 2.0 * layer["lora_a"] @ layer["lora_b"]
    np.testing.assert_allclose(state[f"{name}.base_layer.weight"].T, expected, atol=1e-6)
    np.testing.assert_allclose(
        denoised(tmp_path / "back.ckpt"), denoised(folder), rtol=0, atol=1e-5
    )


def test_endings_that_would_match_more(tmp_path):
    """adaLN_modulation.1 also ends the last layer's name."""
    write_torch_file(tmp_path / "model.ckpt", CONTENTS["ldm"]())
    plain = convert_file(tmp_path / "model.ckpt", OPTIONS)
    for targets, expected in (
        (("modulation",), [f"blocks.{i}.adaLN_modulation.1" for i in range(2)]),
        (("modulation", "final_modulation"), None),
        (("blocks.1.mlp.fc1",), ["blocks.1.mlp.fc1"]),
    ):
        folder = with_lora(plain, tmp_path / "-".join(targets), targets)
        write_torch(open_model(folder), tmp_path / "back.ckpt")
        hyper = read(tmp_path / "back.ckpt")["hyper_parameters"]
        assert hyper["lora_configs"]["target_modules"] == (
            expected or ["adaLN_modulation.1", "final_layer.adaLN_modulation.1"]
        )


def test_a_damaged_meta(tmp_path):
    write_torch_file(tmp_path / "model.ckpt", CONTENTS["vae"]())
    model = convert_file(tmp_path / "model.ckpt", OPTIONS)
    entries = model.meta.to_json()
    without_table = {k: v for k, v in entries.items() if k != "size_table"}
    source = {**entries["source"], "dtypes": {"quant_conv.weight": "float17"}}
    for name, meta, message in (
        ("a", {**entries, "source": None}, "wrong entry 'source'"),
        ("b", without_table, "no entry 'size_table'"),
        ("c", {**entries, "source": source}, "is damaged"),
    ):
        write_checkpoint(tmp_path / name, items=model.trees, meta=meta)
        with pytest.raises(CheckpointError, match=message):
            write_torch(open_model(tmp_path / name), tmp_path / "back.ckpt")
    assert not (tmp_path / "back.ckpt").exists()


def test_a_replaced_folder_is_whole_or_the_old_one(tmp_path, monkeypatch):
    for name in ("vae", "ldm"):
        write_torch_file(tmp_path / f"{name}.ckpt", CONTENTS[name]())
    vae, ldm = (convert_file(tmp_path / f"{name}.ckpt", OPTIONS) for name in ("vae", "ldm"))
    out = tmp_path / "out"
    write_orbax(vae, out)

    def fail(*args, **kwargs):
        (args[0].parent / "half").mkdir()
        raise CheckpointError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_checkpoint", fail)
        with pytest.raises(CheckpointError, match="no room"):
            write_orbax(ldm, out)
    assert open_model(out).meta.stage == "train_vae"
    write_orbax(ldm, out)
    assert open_model(out).meta.stage == "train_ldm"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ldm.ckpt", "out", "vae.ckpt"]


def test_nothing_to_merge(tmp_path):
    write_torch_file(tmp_path / "model.ckpt", CONTENTS["ldm"]())
    model = convert_file(tmp_path / "model.ckpt", OPTIONS)
    with pytest.raises(CheckpointError, match="no LoRA adapters"):
        write_orbax(model, tmp_path / "out", merge_lora=True)
    assert not (tmp_path / "out").exists()


def test_averages_go_into_the_folder(tiny_ldm, tmp_path):
    """The folder of a run's checkpoint has the items for sampling, and no others."""
    write_orbax(open_model(tiny_ldm.path), tmp_path / "small")
    small = open_model(tmp_path / "small")
    assert "train" not in small.items
    trained, converted = (load_model(p).parts for p in (tiny_ldm.path, tmp_path / "small"))
    jax.tree.map(np.testing.assert_array_equal, converted.params, trained.params)
    names = set(flat_names(small.restore("params")))
    assert names == set(flat_names(small.restore("ema")))


def test_an_option_of_the_encoder_that_the_original_does_not_have():
    with pytest.raises(CheckpointError, match="reads sin and cos of the coordinates"):
        vae_entries(VAESizes(encoder=TransformerSizes(periodic_coords=True)))


def test_an_encoder_that_the_original_does_not_have():
    class OwnSizes(EncoderSizes):
        name = "own"

    with pytest.raises(CheckpointError, match="its encoder 'own' has no PyTorch form"):
        vae_entries(replace(VAESizes(), encoder=OwnSizes()))
