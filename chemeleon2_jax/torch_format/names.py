"""Tensors of a PyTorch checkpoint and the parameters here, one table for reading and writing.

Functions map a `module` of the original, dotted, to the `path` of a layer in a parameter tree. A
Linear's weight is (out, in) in PyTorch, a kernel (in, out) here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.models.encoders.registry import CSPNetSizes, EncoderSizes, TransformerSizes
from chemeleon2_jax.models.sizes import DiTSizes, LoRASizes, VAESizes

DENOISER, CONDITIONS, LATENT_STD = "denoiser.", "condition_module.", "latent_std"
PEFT = "base_model.model."

SCHEDULES = ("linear", "squaredcos_cap_v2")  # that the original has
TARGETS = ("eps", "x_0")
"""Prefix of names in a model that peft wraps for adapters."""
ADAPTER = "default"


@dataclass(frozen=True)
class Entry:
    """A tensor of a `state_dict` and the path of its parameter; kernels are transposed."""

    tensor: str
    parameter: str
    transposed: bool = False


def vae_entries(sizes: VAESizes, prefix: str = "") -> list[Entry]:
    """Return the tensors of a VAE in the order of the original's modules.

    Raises:
        CheckpointError: the original does not have the encoder, or an option of it.
    """
    encoder_entries = _ENCODERS.get(type(sizes.encoder))
    if encoder_entries is None:
        raise CheckpointError(f"its encoder {sizes.encoder.name!r} has no PyTorch form")
    if getattr(sizes.encoder, "periodic_coords", False):
        raise CheckpointError(
            "its encoder reads sin and cos of the coordinates (encoder.periodic_coords), and the "
            "original's reads the fractions alone"
        )
    entries = [*encoder_entries(sizes.encoder), *_decoder(sizes)]
    entries += _linear("quant_conv", "quant", bias=False)
    entries += _linear("post_quant_conv", "decoder/post_quant", bias=False)
    if sizes.foundation_alignment:
        entries += _linear("proj", "projection")
    return [replace(entry, tensor=prefix + entry.tensor) for entry in entries]


def _transformer_encoder(sizes: TransformerSizes) -> Iterator[Entry]:
    yield Entry("encoder.atom_type_embedder.weight", "encoder/atom_types")
    for name in ("lattices", "frac_coords"):
        yield from _linear(f"encoder.{name}_embedder.0", f"encoder/{name}/fc1", bias=False)
        yield from _linear(f"encoder.{name}_embedder.2", f"encoder/{name}/fc2")
    yield from _transformer("encoder", sizes.num_layers)


def _cspnet_encoder(sizes: CSPNetSizes) -> Iterator[Entry]:
    yield Entry("encoder.node_embedding.weight", "encoder/atom_types")
    for i in range(sizes.num_layers):
        module, path = f"encoder.csp_layer_{i}", f"encoder/layers/{i}"
        for part in ("edge", "node"):
            yield from _linear(f"{module}.{part}_mlp.0", f"{path}/{part}1")
            yield from _linear(f"{module}.{part}_mlp.2", f"{path}/{part}2")
        if sizes.layer_norm:
            yield from _norm(f"{module}.layer_norm", f"{path}/norm")
    if sizes.layer_norm:
        yield from _norm("encoder.final_layer_norm", "encoder/norm")
    yield from _linear("encoder.fc_out", "encoder/out")


_ENCODERS: dict[type[EncoderSizes], Callable[[Any], Iterator[Entry]]] = {
    TransformerSizes: _transformer_encoder,
    CSPNetSizes: _cspnet_encoder,
}


def _decoder(sizes: VAESizes) -> Iterator[Entry]:
    yield from _transformer("decoder", sizes.decoder.num_layers)
    if sizes.atom_type_predict:
        yield from _linear("decoder.atom_types_head", "decoder/atom_head")
    yield from _linear("decoder.frac_coords_head", "decoder/frac_head", bias=False)
    yield from _linear("decoder.lattice_head", "decoder/lattice_head", bias=False)


def _transformer(part: str, num_layers: int) -> Iterator[Entry]:
    for i in range(num_layers):
        module, path = f"{part}.transformer.layers.{i}", f"{part}/transformer/layers/{i}"
        yield from _attention(f"{module}.self_attn", f"{path}/attention")
        yield from _linear(f"{module}.linear1", f"{path}/mlp/fc1")
        yield from _linear(f"{module}.linear2", f"{path}/mlp/fc2")
        yield from _norm(f"{module}.norm1", f"{path}/norm1")
        yield from _norm(f"{module}.norm2", f"{path}/norm2")
    yield from _norm(f"{part}.transformer.norm", f"{part}/transformer/norm")


def dit_entries(sizes: DiTSizes) -> list[Entry]:
    """Return the tensors of a denoiser with its adapters."""
    entries = [*_linear("x_embedder", "x_embedder")]
    entries += _linear("t_embedder.mlp.0", "t_embedder/fc1")
    entries += _linear("t_embedder.mlp.2", "t_embedder/fc2")
    for i in range(sizes.depth):
        module, path = f"blocks.{i}", f"blocks/{i}"
        entries += _attention(f"{module}.attn", f"{path}/attention")
        entries += _linear(f"{module}.mlp.fc1", f"{path}/mlp/fc1")
        entries += _linear(f"{module}.mlp.fc2", f"{path}/mlp/fc2")
        entries += _linear(f"{module}.adaLN_modulation.1", f"{path}/modulation")
    entries += _linear("final_layer.linear", "final")
    entries += _linear("final_layer.adaLN_modulation.1", "final_modulation")
    prefix = DENOISER
    if sizes.lora is not None:
        entries, prefix = _with_adapters(entries, sizes.lora), DENOISER + PEFT
    return [replace(entry, tensor=prefix + entry.tensor) for entry in entries]


def condition_entries(sizes: DiTSizes) -> list[Entry]:
    """Return the tensors of a denoiser's conditions; none for an unconditional one."""
    if sizes.conditions is None:
        return []
    entries: list[Entry] = []
    for condition in sizes.conditions.conditions:
        module = f"{CONDITIONS}encoders.{condition.name}"
        path = f"conditions/encoders/{condition.name}"
        entries.append(Entry(f"{module}.null_embed", f"{path}/null_embed"))
        entries += _linear(f"{module}.embedding.0", f"{path}/fc1")
        entries += _linear(f"{module}.embedding.2", f"{path}/fc2")
    entries += _linear(f"{CONDITIONS}proj.0", "conditions/fc1")
    entries += _linear(f"{CONDITIONS}proj.2", "conditions/fc2")
    return entries


def predictor_entries() -> list[Entry]:
    """Return the tensors of a predictor's head."""
    entries = [*_linear("proj.0", "fc1"), *_norm("proj.1", "norm1")]
    entries += [*_linear("proj.4", "fc2"), *_norm("proj.5", "norm2")]
    return [*entries, *_linear("proj.8", "fc3")]


def _linear(module: str, path: str, *, bias: bool = True) -> Iterator[Entry]:
    yield Entry(f"{module}.weight", f"{path}/kernel", transposed=True)
    if bias:
        yield Entry(f"{module}.bias", f"{path}/bias")


def _norm(module: str, path: str) -> Iterator[Entry]:
    yield Entry(f"{module}.weight", f"{path}/scale")
    yield Entry(f"{module}.bias", f"{path}/bias")


def _attention(module: str, path: str) -> Iterator[Entry]:
    yield Entry(f"{module}.in_proj_weight", f"{path}/qkv/kernel", transposed=True)
    yield Entry(f"{module}.in_proj_bias", f"{path}/qkv/bias")
    yield from _linear(f"{module}.out_proj", f"{path}/out")


def _with_adapters(entries: list[Entry], lora: LoRASizes) -> list[Entry]:
    """The same layers, those with adapters with their names in peft, followed by A and B."""
    out = []
    for entry in entries:
        layer, _, leaf = entry.parameter.rpartition("/")
        if not lora.applies_to(layer.replace("/", ".")):
            out.append(entry)
            continue
        module, _, kind = entry.tensor.rpartition(".")
        out.append(replace(entry, tensor=f"{module}.base_layer.{kind}"))
        if leaf == "bias":  # the last of a layer's own
            for name in "AB":
                weight = f"{module}.lora_{name}.{ADAPTER}.weight"
                out.append(Entry(weight, f"{layer}/lora_{name.lower()}", transposed=True))
    return out


# --- layers that adapters may sit on --------------------------------------------------------------

_ADAPTED = {
    "x_embedder": "x_embedder",
    "t_embedder.mlp.0": "t_embedder.fc1",
    "t_embedder.mlp.2": "t_embedder.fc2",
    "attn.out_proj": "attention.out",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "adaLN_modulation.1": "modulation",
    "final_layer.linear": "final",
    "final_layer.adaLN_modulation.1": "final_modulation",
}


def adapted_layer(module: str) -> str | None:
    """Return the dotted path here of a Linear layer of the original's denoiser; None for others."""
    # Longest first: adaLN_modulation.1 ends two of them.
    for name in sorted(_ADAPTED, key=len, reverse=True):
        if module == name or module.endswith(f".{name}"):
            return module.removesuffix(name) + _ADAPTED[name]
    return None


def torch_layer(path: str) -> str | None:
    """Undo `adapted_layer`."""
    for name, ending in sorted(_ADAPTED.items(), key=lambda pair: -len(pair[1])):
        if path == ending or path.endswith(f".{ending}"):
            return path.removesuffix(ending) + name
    return None
