"""Models from files of the PyTorch original: every tensor, sizes, options, and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.models.sizes import DiffusionConfig, Target
from chemeleon2_jax.torch_format.from_torch import convert_file
from chemeleon2_jax.torch_format.hyperparameters import statistics
from chemeleon2_jax.torch_format.model import Options
from chemeleon2_jax.torch_format.torch_file import open_torch_file
from chemeleon2_jax.torch_format.torch_writer import write_torch_file
from chemeleon2_jax.training.plain_trees import flat_names
from tests.torch_format import original_files
from tests.torch_format.archives import Built, Call, Raw, pack
from tests.torch_format.original_files import CONTENTS, FEEDFORWARD, HIDDEN, LATENT, WIDTH


def convert(folder: Path, content: Any, **options: Any) -> Any:
    """Write a file and read it."""
    write_torch_file(folder / "model.ckpt", content)
    return convert_file(folder / "model.ckpt", Options(size_table=(0, 1, 2), **options))


@pytest.mark.parametrize("name", CONTENTS)
def test_every_number_is_there_once(name, tmp_path):
    content = CONTENTS[name]()
    model = convert(tmp_path, content)
    arrays = [a for tree in model.trees.values() for a in flat_names(tree).values()]
    arrays += [np.float32(model.meta.ldm.latent_std)] if model.meta.ldm else []
    actual = np.sort(np.concatenate([np.ravel(a) for a in arrays]))
    expected = np.sort(np.concatenate([np.ravel(a) for a in content["state_dict"].values()]))
    np.testing.assert_array_equal(actual, expected)
    assert model.report.num_tensors == len(content["state_dict"])
    assert model.report.num_parameters == len(expected)
    assert not model.report.ignored


def test_vae(tmp_path):
    content = original_files.vae_content()
    model = convert(tmp_path, content)
    encoder, decoder = model.meta.vae.encoder, model.meta.vae.decoder
    assert (encoder.nhead, decoder.nhead) == (2, 4)
    assert (encoder.num_layers, decoder.num_layers) == (2, 3)
    assert encoder.d_model == WIDTH
    assert encoder.dim_feedforward == FEEDFORWARD
    assert model.meta.vae.latent_dim == LATENT
    assert model.meta.source.epoch == 3
    weight = content["state_dict"]["encoder.transformer.layers.1.linear1.weight"]
    kernel = model.trees["params"]["encoder"]["transformer"]["layers"]["1"]["mlp"]["fc1"]["kernel"]
    np.testing.assert_array_equal(kernel, weight.T)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("vae_csp", "atom_type_predict", False),
        ("vae_fa", "foundation_alignment", True),
        ("vae", "atom_type_predict", True),
        ("vae", "foundation_alignment", False),
    ],
)
def test_vae_options(name, key, value, tmp_path):
    assert getattr(convert(tmp_path, CONTENTS[name]()).meta.vae, key) is value


def test_cspnet(tmp_path):
    encoder = convert(tmp_path, CONTENTS["vae_cspnet"]()).meta.vae.encoder
    assert encoder.name == "cspnet"
    assert encoder.num_freqs == original_files.FREQUENCIES
    assert encoder.layer_norm is True
    encoder = convert(tmp_path, CONTENTS["vae_cspnet_without_norms"]()).meta.vae.encoder
    assert encoder.layer_norm is False


def test_ldm(tmp_path):
    meta = convert(tmp_path, CONTENTS["ldm"]()).meta
    ldm = meta.ldm
    dit = ldm.dit
    assert (dit.hidden_size, dit.depth, dit.num_heads) == (HIDDEN, 2, 3)
    assert dit.mlp_ratio == 2.0
    assert dit.learn_sigma is True
    assert dit.variance_layout == "interleaved"
    assert ldm.latent_std == np.float32(0.7)
    assert ldm.sample_weights == "raw"
    assert meta.size_table == (0, 1, 2)
    assert ldm.diffusion == DiffusionConfig(num_steps=1000, schedule="linear", target="eps")


def test_fixed_sigma(tmp_path):
    assert convert(tmp_path, CONTENTS["ldm_fixed_sigma"]()).meta.ldm.dit.learn_sigma is False


def test_target_and_schedule(tmp_path):
    content = CONTENTS["ldm"]()
    chain = {"diffusion_steps": 100, "predict_xstart": True, "noise_schedule": "squaredcos_cap_v2"}
    content["hyper_parameters"]["diffusion_configs"] = chain
    actual = convert(tmp_path, content).meta.ldm.diffusion
    assert actual == DiffusionConfig(num_steps=100, schedule="squaredcos_cap_v2", target="x_0")


def test_conditions(tmp_path):
    model = convert(tmp_path, CONTENTS["ldm_conditional"]())
    conditions = model.meta.ldm.dit.conditions
    assert [(c.name, c.kind) for c in conditions.conditions] == [
        ("composition", "composition"),
        ("elements", "chemical_system"),
        ("dft_band_gap", "float"),
        ("space_group", "categorical"),
    ]
    assert conditions.conditions[2].mean == 1.25
    assert conditions.conditions[3].num_classes == 7
    assert conditions.drop_prob == 0.2


def test_adapters(tmp_path):
    content = CONTENTS["ldm_lora"]()
    model = convert(tmp_path, content)
    lora = model.meta.ldm.dit.lora
    assert lora.rank == 2
    assert lora.alpha == 8.0
    assert sorted(lora.targets) == ["mlp.fc1", "mlp.fc2"]
    layer = model.trees["params"]["blocks"]["1"]["mlp"]["fc2"]
    tensor = "denoiser.base_model.model.blocks.1.mlp.fc2.lora_B.default.weight"
    np.testing.assert_array_equal(layer["lora_b"], content["state_dict"][tensor].T)


def test_adapters_on_some_blocks(tmp_path):
    content = CONTENTS["ldm_lora"]()
    base = "denoiser.base_model.model.blocks.0.mlp.fc1"
    state = content["state_dict"]
    for kind in ("weight", "bias"):
        state[f"{base}.{kind}"] = state.pop(f"{base}.base_layer.{kind}")
    for name in ("lora_A", "lora_B"):
        del state[f"{base}.{name}.default.weight"]
    targets = convert(tmp_path, content).meta.ldm.dit.lora.targets
    assert sorted(targets) == ["blocks.1.mlp.fc1", "mlp.fc2"]


def test_predictor(tmp_path):
    meta = convert(tmp_path, CONTENTS["predictor"]()).meta
    sizes = meta.predictor
    assert sizes.targets == (Target("energy", mean=-1.0, std=2.0), Target("gap"))
    assert sizes.reduce == "sum"
    assert sizes.use_encoder_features is True


def test_averages(tmp_path):
    content = original_files.with_averages(original_files.ldm_content())
    raw = convert(tmp_path, content)
    assert [name for name, _ in raw.report.ignored] == ["ema_state"]
    averages = convert(tmp_path, content, ema=True)
    assert averages.meta.ldm.latent_std == raw.meta.ldm.latent_std
    for item in ("params", "vae"):
        arrays = flat_names(raw.trees[item])
        for name, average in flat_names(averages.trees[item]).items():
            np.testing.assert_array_equal(average, arrays[name] + np.float32(1.0))


def test_bare_state_dict(tmp_path):
    content = original_files.vae_content()["state_dict"]
    assert convert(tmp_path, content, vae_heads=(2, 2)).meta.vae.decoder.nhead == 2


def test_half_precision(tmp_path):
    content = original_files.vae_content()
    state = content["state_dict"]
    state["quant_conv.weight"] = state["quant_conv.weight"].astype(np.float16)
    name = "decoder.lattice_head.weight"
    state[name] = state[name].astype(ml_dtypes.bfloat16)
    model = convert(tmp_path, content)
    assert model.meta.source.dtypes == {"quant_conv.weight": "float16", name: "bfloat16"}
    kernel = model.trees["params"]["decoder"]["lattice_head"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, state[name].astype(np.float32).T)


# --- the VAE of an LDM ----------------------------------------------------------------------------


def without_heads(content: dict[str, Any], vae_ckpt_path: str | None = None) -> dict[str, Any]:
    hyper = {k: v for k, v in content["hyper_parameters"].items() if k != "vae"}
    return {**content, "hyper_parameters": {**hyper, "vae_ckpt_path": vae_ckpt_path}}


def vae_of_ldm(ldm: dict[str, Any]) -> dict[str, Any]:
    """Content of a file of the VAE in an LDM."""
    inside = {k: v for k, v in ldm["state_dict"].items() if k.startswith("vae.")}
    state = {name.removeprefix("vae."): tensor for name, tensor in inside.items()}
    return {"state_dict": state, "hyper_parameters": dict(original_files.VAE_OPTIONS)}


def test_heads_from_the_vae_beside(tmp_path):
    ldm = original_files.ldm_content()
    write_torch_file(tmp_path / "dng_v0.ckpt", vae_of_ldm(ldm))
    model = convert(tmp_path, without_heads(ldm, "ckpts/some/where/dng_v0.ckpt"))
    assert model.meta.vae.encoder.nhead == 2
    assert model.meta.vae.decoder.nhead == 4
    assert any("dng_v0.ckpt" in note for note in model.report.notes)


def test_heads_from_a_vae_of_another_name(tmp_path):
    """It lies beside the file and has the same weights; the file does not name it."""
    ldm = original_files.ldm_content()
    write_torch_file(tmp_path / "a.ckpt", original_files.vae_content())  # other weights
    write_torch_file(tmp_path / "b.ckpt", original_files.predictor_content())
    (tmp_path / "c.ckpt").write_text("no checkpoint")
    write_torch_file(tmp_path / "d.ckpt", vae_of_ldm(ldm))
    model = convert(tmp_path, without_heads(ldm))
    assert model.meta.vae.encoder.nhead == 2
    assert model.report.notes == ["d.ckpt tells the heads of its VAE: 4"]


def test_an_ldm_without_its_vae_takes_the_one_that_it_names(tmp_path):
    write_torch_file(tmp_path / "v.ckpt", original_files.vae_content())
    ldm = original_files.ldm_content(with_vae=False)
    model = convert(tmp_path, without_heads(ldm, "ckpts/v.ckpt"))
    assert any("v.ckpt" in text for text in model.report.assumptions)
    (tmp_path / "v.ckpt").rename(tmp_path / "w.ckpt")  # not just any
    with pytest.raises(CheckpointError, match="--vae"):
        convert(tmp_path, without_heads(ldm, "ckpts/v.ckpt"))


def test_another_vae_beside_tells_nothing(tmp_path):
    write_torch_file(tmp_path / "dng_v0.ckpt", original_files.vae_content())  # other weights
    with pytest.raises(CheckpointError, match="--vae"):
        convert(tmp_path, without_heads(original_files.ldm_content(), "dng_v0.ckpt"))


def test_heads_from_a_given_vae(tmp_path):
    ldm = original_files.ldm_content()
    write_torch_file(tmp_path / "vae.ckpt", vae_of_ldm(ldm))
    vae = convert_file(tmp_path / "vae.ckpt")
    model = convert(tmp_path, without_heads(ldm), vae=vae)
    assert model.meta.vae == vae.meta.vae
    assert not model.report.assumptions


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("name", ["vae", "vae_cspnet"])
def test_a_given_vae_that_is_another(name, tells, tmp_path):
    write_torch_file(tmp_path / "vae.ckpt", CONTENTS[name]())
    vae = convert_file(tmp_path / "vae.ckpt")
    ldm = original_files.ldm_content()
    with pytest.raises(CheckpointError, match=r"vae\.ckpt is not the VAE.*weights differ"):
        convert(tmp_path, ldm if tells else without_heads(ldm), vae=vae)


def test_fixed_sigma_is_read_as_any_other(tmp_path):
    """Without a variance there is nothing to interleave."""
    dit = convert(tmp_path, CONTENTS["ldm_fixed_sigma"]()).meta.ldm.dit
    assert dit.variance_layout == "per_token"


def test_names_of_wrappers(tmp_path):
    content = original_files.vae_content()
    expected = convert(tmp_path, content).trees["params"]
    for name in ("module.{}", "_orig_mod.{}", "module._orig_mod.{}"):
        state = {name.format(k): v for k, v in content["state_dict"].items()}
        actual = convert(tmp_path, {**content, "state_dict": state}).trees["params"]
        assert flat_names(actual).keys() == flat_names(expected).keys()


def test_what_is_for_training_is_named(tmp_path):
    content = {**original_files.vae_content(), "optimizer_states": [{"state": {}}]}
    report = convert(tmp_path, content).report
    assert [name for name, _ in report.ignored] == ["optimizer_states"]
    assert "optimizer_states" in report.describe()


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i1", "i4", "i8", "u2", ">f4", ">i8"])
def test_statistics_as_numbers_of_numpy(kind, tmp_path):
    """A scalar is pickled as a class, a dtype and bytes."""
    order, code = (kind[0], kind[1:]) if kind[0] in "<>" else ("<", kind)
    number = np.array(2, f"{order}{code}")
    state = (3, order, None, None, None, -1, -1, 0)
    dtype = Built(Call("numpy.dtype", (code, False, True)), state)
    raw = number.tobytes()
    data = Raw(b"C" + bytes([len(raw)]) + raw)
    mean = Call("numpy._core.multiarray.scalar", (dtype, data))
    path = pack(tmp_path / "a.pkl", {"mean": mean, "std": mean})
    with open_torch_file(path) as file:
        assert statistics(file.content) == (2.0, 2.0)


def test_a_rounded_copy_of_an_ldm(tmp_path):
    """The file of its VAE is not rounded."""
    ldm = original_files.ldm_content()
    write_torch_file(tmp_path / "vae.ckpt", vae_of_ldm(ldm))
    vae = convert_file(tmp_path / "vae.ckpt")
    for kind in (np.float16, ml_dtypes.bfloat16):
        state = {name: np.asarray(a, kind) for name, a in ldm["state_dict"].items()}
        model = convert(tmp_path, without_heads({**ldm, "state_dict": state}), vae=vae)
        assert model.meta.vae == vae.meta.vae


def test_statistics_as_tensors(tmp_path):
    content = CONTENTS["predictor"]()
    stats = {"energy": {"mean": np.array(-1.5), "std": np.array([2.5], np.float32)}, "gap": {}}
    content["hyper_parameters"]["target_conditions"] = stats
    target = convert(tmp_path, content).meta.predictor.targets[0]
    assert (target.mean, target.std) == (-1.5, 2.5)


def test_an_ldm_without_its_vae(tmp_path):
    ldm = original_files.ldm_content(with_vae=False)
    with pytest.raises(CheckpointError, match=r"does not hold its VAE.*--vae"):
        convert(tmp_path, ldm)
    write_torch_file(tmp_path / "vae.ckpt", original_files.vae_content())
    vae = convert_file(tmp_path / "vae.ckpt")
    model = convert(tmp_path, ldm, vae=vae)
    np.testing.assert_array_equal(
        model.trees["vae"]["quant"]["kernel"], vae.trees["params"]["quant"]["kernel"]
    )


def test_a_vae_of_another_latent_width(tmp_path):
    ldm = original_files.ldm_content(with_vae=False)
    other = original_files.vae_content()
    for name in ("quant_conv.weight", "post_quant_conv.weight"):
        tensor = other["state_dict"][name]
        other["state_dict"][name] = tensor[:6] if name.startswith("quant") else tensor[:, :3]
    write_torch_file(tmp_path / "vae.ckpt", other)
    with pytest.raises(CheckpointError, match=r"width 4, but the VAE has 3"):
        convert(tmp_path, ldm, vae=convert_file(tmp_path / "vae.ckpt"))


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTENTS)
def test_each_missing_tensor_is_named(name, tmp_path):
    content = CONTENTS[name]()
    names = [n for n in content["state_dict"] if n != "latent_std"]
    for missing in names[:: max(1, len(names) // 12)]:
        state = {k: v for k, v in content["state_dict"].items() if k != missing}
        with pytest.raises(CheckpointError) as error:
            convert(tmp_path, {**content, "state_dict": state})
        # A missing Linear of an adapter or head shows as another variant, but it is named.
        assert missing.rpartition(".")[0].removeprefix("vae.") in str(error.value), missing


@pytest.mark.parametrize("name", CONTENTS)
def test_an_extra_tensor_is_named(name, tmp_path):
    content = CONTENTS[name]()
    extra = next(iter(content["state_dict"])).partition(".")[0] + ".strange.weight"
    content["state_dict"][extra] = np.zeros((2, 2), np.float32)
    with pytest.raises(CheckpointError, match=r"strange\.weight"):
        convert(tmp_path, content)


@pytest.mark.parametrize("name", CONTENTS)
def test_each_misshapen_tensor_is_an_error(name, tmp_path):
    content = CONTENTS[name]()
    names = list(content["state_dict"])
    for wrong in names[:: max(1, len(names) // 12)]:
        tensor = content["state_dict"][wrong]
        state = {**content["state_dict"], wrong: np.zeros((*tensor.shape, 3), np.float32)}
        with pytest.raises(CheckpointError, match=r"model\.ckpt.*shape") as error:
            convert(tmp_path, {**content, "state_dict": state})
        assert wrong in str(error.value)


def test_a_tensor_of_integers(tmp_path):
    content = original_files.vae_content()
    tensor = content["state_dict"]["quant_conv.weight"]
    content["state_dict"]["quant_conv.weight"] = tensor.astype(np.int64)
    with pytest.raises(CheckpointError, match=r"quant_conv\.weight holds int64"):
        convert(tmp_path, content)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_latent_std_out_of_range(value, tmp_path):
    content = original_files.ldm_content()
    content["state_dict"]["latent_std"] = np.array(value, np.float32)
    with pytest.raises(CheckpointError, match="latent_std"):
        convert(tmp_path, content)


def test_another_project(tmp_path):
    content = {"state_dict": {"conv1.weight": np.zeros((3, 3), np.float32)}}
    with pytest.raises(CheckpointError, match=r"no checkpoint of Chemeleon2.*conv1"):
        convert(tmp_path, content)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"state_dict": {}}, {"state_dict": 3}, None])
def test_no_state_dict(content, tmp_path):
    with pytest.raises(CheckpointError, match=r"model\.ckpt.*state_dict"):
        convert(tmp_path, content)


def test_conditions_without_their_types(tmp_path):
    content = CONTENTS["ldm_conditional"]()
    content["hyper_parameters"]["condition_module"] = None
    with pytest.raises(CheckpointError, match="condition_type"):
        convert(tmp_path, content)


def test_a_condition_of_an_unknown_kind(tmp_path):
    content = CONTENTS["ldm_conditional"]()
    kinds = {**original_files.CONDITIONS["condition_type"], "elements": "smell"}
    content["hyper_parameters"]["condition_module"] = {
        **original_files.CONDITIONS,
        "condition_type": kinds,
    }
    with pytest.raises(CheckpointError, match="smell"):
        convert(tmp_path, content)


def test_adapters_of_different_ranks(tmp_path):
    content = CONTENTS["ldm_lora"]()
    base = "denoiser.base_model.model.blocks.0.mlp.fc1"
    content["state_dict"][f"{base}.lora_A.default.weight"] = np.zeros((3, HIDDEN), np.float32)
    with pytest.raises(CheckpointError, match="ranks"):
        convert(tmp_path, content)


def test_adapters_without_a_scale(tmp_path):
    content = CONTENTS["ldm_lora"]()
    content["hyper_parameters"]["lora_configs"] = None
    with pytest.raises(CheckpointError, match="lora_alpha"):
        convert(tmp_path, content)


def test_no_averages(tmp_path):
    with pytest.raises(CheckpointError, match="ema_state"):
        convert(tmp_path, original_files.ldm_content(), ema=True)


def test_averages_that_do_not_fit(tmp_path):
    content = original_files.with_averages(original_files.ldm_content())
    content["ema_state"]["shadow_params"].pop()
    with pytest.raises(CheckpointError, match="ema_state"):
        convert(tmp_path, content, ema=True)


def test_predictor_without_targets(tmp_path):
    content = CONTENTS["predictor"]()
    del content["hyper_parameters"]["target_conditions"]
    with pytest.raises(CheckpointError, match="target_conditions"):
        convert(tmp_path, content)


@pytest.mark.parametrize("heads", [None, 5, "two", True, -2])
def test_heads_that_are_none(heads, tmp_path):
    content = original_files.vae_content()
    content["hyper_parameters"] = {"encoder": {"nhead": heads}, "decoder": {"nhead": heads}}
    with pytest.raises(CheckpointError, match="heads"):
        convert(tmp_path, content)
