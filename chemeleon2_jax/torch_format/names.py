"""Which tensor of a PyTorch checkpoint is which parameter here, both ways.

One table for each model, made from its sizes: reading and writing use the same one. `theirs` are
names in a `state_dict`; `ours` are paths in a parameter tree, as checkpoints name them. A Linear's
weight is (out, in) there and a kernel (in, out) here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.models.encoders.registry import CSPNetSizes, EncoderSizes, TransformerSizes
from chemeleon2_jax.models.sizes import DiTSizes, LoRASizes, PredictorSizes, VAESizes

DENOISER, CONDITIONS, LATENT_STD = "denoiser.", "condition_module.", "latent_std"
PEFT = "base_model.model."
"""What the library of adapters puts before the names of a model that it wraps."""
ADAPTER = "default"


@dataclass(frozen=True)
class Entry:
    """A tensor there and the parameter here; `transposed` for the kernels of Linear layers."""

    theirs: str
    ours: str
    transposed: bool = False


def vae_entries(sizes: VAESizes, prefix: str = "") -> list[Entry]:
    """Tensors of a VAE in the order of the original's modules.

    Raises:
        CheckpointError: an encoder that the original does not have.
    """
    encoder_entries = _ENCODERS.get(type(sizes.encoder))
    if encoder_entries is None:
        raise CheckpointError(f"its encoder {sizes.encoder.name!r} has no PyTorch form")
    entries = [*encoder_entries(sizes.encoder), *_decoder(sizes)]
    entries += _linear("quant_conv", "quant", bias=False)
    entries += _linear("post_quant_conv", "decoder/post_quant", bias=False)
    if sizes.foundation_alignment:
        entries += _linear("proj", "projection")
    return [replace(entry, theirs=prefix + entry.theirs) for entry in entries]


def _transformer_encoder(sizes: TransformerSizes) -> Iterator[Entry]:
    yield Entry("encoder.atom_type_embedder.weight", "encoder/atom_types")
    for name in ("lattices", "frac_coords"):
        yield from _linear(f"encoder.{name}_embedder.0", f"encoder/{name}/fc1", bias=False)
        yield from _linear(f"encoder.{name}_embedder.2", f"encoder/{name}/fc2")
    yield from _transformer("encoder", sizes.num_layers)


def _cspnet_encoder(sizes: CSPNetSizes) -> Iterator[Entry]:
    yield Entry("encoder.node_embedding.weight", "encoder/atom_types")
    for i in range(sizes.num_layers):
        theirs, ours = f"encoder.csp_layer_{i}", f"encoder/layers/{i}"
        for part in ("edge", "node"):
            yield from _linear(f"{theirs}.{part}_mlp.0", f"{ours}/{part}1")
            yield from _linear(f"{theirs}.{part}_mlp.2", f"{ours}/{part}2")
        if sizes.layer_norm:
            yield from _norm(f"{theirs}.layer_norm", f"{ours}/norm")
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
        theirs, ours = f"{part}.transformer.layers.{i}", f"{part}/transformer/layers/{i}"
        yield from _attention(f"{theirs}.self_attn", f"{ours}/attention")
        yield from _linear(f"{theirs}.linear1", f"{ours}/mlp/fc1")
        yield from _linear(f"{theirs}.linear2", f"{ours}/mlp/fc2")
        yield from _norm(f"{theirs}.norm1", f"{ours}/norm1")
        yield from _norm(f"{theirs}.norm2", f"{ours}/norm2")
    yield from _norm(f"{part}.transformer.norm", f"{part}/transformer/norm")


def dit_entries(sizes: DiTSizes) -> list[Entry]:
    """Tensors of a denoiser, with its adapters, and of its conditions."""
    entries = [*_linear("x_embedder", "x_embedder")]
    entries += _linear("t_embedder.mlp.0", "t_embedder/fc1")
    entries += _linear("t_embedder.mlp.2", "t_embedder/fc2")
    for i in range(sizes.depth):
        theirs, ours = f"blocks.{i}", f"blocks/{i}"
        entries += _attention(f"{theirs}.attn", f"{ours}/attention")
        entries += _linear(f"{theirs}.mlp.fc1", f"{ours}/mlp/fc1")
        entries += _linear(f"{theirs}.mlp.fc2", f"{ours}/mlp/fc2")
        entries += _linear(f"{theirs}.adaLN_modulation.1", f"{ours}/modulation")
    entries += _linear("final_layer.linear", "final")
    entries += _linear("final_layer.adaLN_modulation.1", "final_modulation")
    prefix = DENOISER
    if sizes.lora is not None:
        entries, prefix = _with_adapters(entries, sizes.lora), DENOISER + PEFT
    return [replace(entry, theirs=prefix + entry.theirs) for entry in entries]


def condition_entries(sizes: DiTSizes) -> list[Entry]:
    """Tensors of a denoiser's conditions; none for an unconditional one."""
    if sizes.conditions is None:
        return []
    entries: list[Entry] = []
    for condition in sizes.conditions.conditions:
        theirs = f"{CONDITIONS}encoders.{condition.name}"
        ours = f"conditions/encoders/{condition.name}"
        entries.append(Entry(f"{theirs}.null_embed", f"{ours}/null_embed"))
        entries += _linear(f"{theirs}.embedding.0", f"{ours}/fc1")
        entries += _linear(f"{theirs}.embedding.2", f"{ours}/fc2")
    entries += _linear(f"{CONDITIONS}proj.0", "conditions/fc1")
    entries += _linear(f"{CONDITIONS}proj.2", "conditions/fc2")
    return entries


def predictor_entries(sizes: PredictorSizes) -> list[Entry]:
    """Tensors of a predictor's head; its sizes do not change their names."""
    del sizes
    entries = [*_linear("proj.0", "fc1"), *_norm("proj.1", "norm1")]
    entries += [*_linear("proj.4", "fc2"), *_norm("proj.5", "norm2")]
    return [*entries, *_linear("proj.8", "fc3")]


def _linear(theirs: str, ours: str, *, bias: bool = True) -> Iterator[Entry]:
    yield Entry(f"{theirs}.weight", f"{ours}/kernel", transposed=True)
    if bias:
        yield Entry(f"{theirs}.bias", f"{ours}/bias")


def _norm(theirs: str, ours: str) -> Iterator[Entry]:
    yield Entry(f"{theirs}.weight", f"{ours}/scale")
    yield Entry(f"{theirs}.bias", f"{ours}/bias")


def _attention(theirs: str, ours: str) -> Iterator[Entry]:
    yield Entry(f"{theirs}.in_proj_weight", f"{ours}/qkv/kernel", transposed=True)
    yield Entry(f"{theirs}.in_proj_bias", f"{ours}/qkv/bias")
    yield from _linear(f"{theirs}.out_proj", f"{ours}/out")


def _with_adapters(entries: list[Entry], lora: LoRASizes) -> list[Entry]:
    """The same layers with an adapter where there is one: its base moves, A and B follow it."""
    out = []
    for entry in entries:
        layer, _, leaf = entry.ours.rpartition("/")
        if not lora.applies_to(layer.replace("/", ".")):
            out.append(entry)
            continue
        theirs, _, kind = entry.theirs.rpartition(".")
        out.append(replace(entry, theirs=f"{theirs}.base_layer.{kind}"))
        if leaf == "bias":  # the last of a layer's own
            for name, ours in (("lora_A", "lora_a"), ("lora_B", "lora_b")):
                weight = f"{theirs}.{name}.{ADAPTER}.weight"
                out.append(Entry(weight, f"{layer}/{ours}", transposed=True))
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


def adapted_layer(theirs: str) -> str | None:
    """Return our path ('blocks.0.mlp.fc1') of a Linear layer there, without prefix; None for what
    is none.
    """
    # Longest first: adaLN_modulation.1 ends two of them.
    for name in sorted(_ADAPTED, key=len, reverse=True):
        if theirs == name or theirs.endswith(f".{name}"):
            return theirs.removesuffix(name) + _ADAPTED[name]
    return None


def their_layer(ours: str) -> str | None:
    """Undo `adapted_layer`."""
    for name, mine in sorted(_ADAPTED.items(), key=lambda pair: -len(pair[1])):
        if ours == mine or ours.endswith(f".{mine}"):
            return ours.removesuffix(mine) + name
    return None
