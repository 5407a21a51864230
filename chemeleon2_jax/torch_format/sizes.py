"""Sizes of VAE and predictor in a PyTorch checkpoint, from shapes of tensors and from options."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.common.stubs import Stub, printable
from chemeleon2_jax.crystals.arrays import NUM_ATOM_CLASSES
from chemeleon2_jax.models.encoders.registry import CSPNetSizes, EncoderSizes, TransformerSizes
from chemeleon2_jax.models.meta import MAX_LAYERS
from chemeleon2_jax.models.sizes import DecoderSizes, PredictorSizes, Target, VAESizes
from chemeleon2_jax.torch_format.hyperparameters import (
    check_transformer,
    number_of_heads,
    plain,
    statistics,
)
from chemeleon2_jax.torch_format.tensors import Tensor

PUBLISHED_WIDTH, PUBLISHED_HEADS = 512, 8
"""Width and attention heads of the published VAEs."""

Heads = tuple[int, int]
"""Attention heads of a VAE's encoder and decoder."""


@dataclass(frozen=True)
class State:
    """Tensors of a `state_dict` below a prefix."""

    tensors: Mapping[str, Tensor]
    prefix: str = ""

    def below(self, prefix: str) -> State:
        """Return the tensors below a further prefix."""
        return State(self.tensors, self.prefix + prefix)

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.tensors

    def shape(self, name: str, ndim: int = 2) -> tuple[int, ...]:
        """Return the shape of a tensor.

        Raises:
            CheckpointError: the tensor is missing, empty, or has another number of axes.
        """
        if name not in self:
            raise CheckpointError(f"its tensor {printable(self.prefix + name)} is missing")
        shape = self.tensors[self.prefix + name].shape
        if len(shape) != ndim or 0 in shape:
            raise CheckpointError(
                f"its tensor {printable(self.prefix + name)} has the shape {shape!s:.100}"
            )
        return shape

    def count(self, pattern: str) -> int:
        """Return the number of layers: one more than the largest index in names that match.

        Raises:
            CheckpointError: the largest index is absurd.
        """
        regex = re.compile(re.escape(self.prefix) + pattern)
        matches = (regex.match(name) for name in self.tensors)
        indices = {int(match[1]) for match in matches if match and len(match[1]) < 6}
        # Whoever reads the tensors names those of a layer that is missing.
        count = max(indices, default=-1) + 1
        if count > min(2 * len(indices) + 2, MAX_LAYERS):
            raise CheckpointError(f"it has a layer {count - 1}, but {len(indices)} layers")
        return count


def vae_sizes(
    state: State, encoder: Any = None, decoder: Any = None, *, heads: Heads | None = None
) -> VAESizes:
    """Return the sizes of a VAE.

    Args:
        state: its tensors.
        encoder, decoder: pickled modules, or plain options; None if unknown.
        heads: of encoder and decoder, where the modules do not tell them.

    Raises:
        HeadsUnknownError: nothing tells a number of heads.
        CheckpointError: a tensor is missing, or a module has no counterpart here.
    """
    check_transformer(encoder, "encoder")
    check_transformer(decoder, "decoder")
    latent_dim = state.shape("post_quant_conv.weight")[1]
    width, feedforward, layers = _transformer_sizes(state, "decoder")
    return VAESizes(
        latent_dim=latent_dim,
        encoder=_encoder_sizes(state, encoder, heads),
        decoder=DecoderSizes(width, _heads(decoder, heads, 1), feedforward, layers),
        atom_type_predict="decoder.atom_types_head.weight" in state,
        foundation_alignment="proj.weight" in state,
    )


class HeadsUnknownError(CheckpointError):
    """Nothing in a file tells the number of attention heads of its VAE."""

    def __init__(self) -> None:
        super().__init__(
            "it does not tell how many attention heads its VAE has: the modules in its "
            "hyper_parameters would"
        )


def _heads(module: Any, known: Heads | None, index: int) -> int:
    heads = number_of_heads(module) or (known[index] if known else None)
    if heads is None:
        raise HeadsUnknownError
    return heads


def _encoder_sizes(state: State, module: Any, heads: Heads | None) -> EncoderSizes:
    if "encoder.node_embedding.weight" in state:
        return _cspnet_sizes(state, module)
    if "encoder.atom_type_embedder.weight" not in state:
        raise CheckpointError(
            f"its encoder is not known: it has neither {state.prefix}encoder.atom_type_embedder "
            f"(transformer) nor {state.prefix}encoder.node_embedding (CSPNet)"
        )
    width, feedforward, layers = _transformer_sizes(state, "encoder")
    return TransformerSizes(
        d_model=width,
        nhead=_heads(module, heads, 0),
        dim_feedforward=feedforward,
        num_layers=layers,
    )


def _transformer_sizes(state: State, part: str) -> tuple[int, int, int]:
    """Width, feedforward width and number of layers."""
    layers = state.count(rf"{part}\.transformer\.layers\.(\d+)\.")
    feedforward, width = state.shape(f"{part}.transformer.layers.0.linear1.weight")
    check_width(width, part)
    return width, feedforward, layers


def check_width(width: int, what: str) -> None:
    """Raise CheckpointError for a width without as many sines as cosines of an atom's index."""
    if width % 2:
        raise CheckpointError(f"its {what} has the width {width}; it must be even")


def _cspnet_sizes(state: State, module: Any) -> CSPNetSizes:
    elements, width = state.shape("encoder.node_embedding.weight")
    if width == NUM_ATOM_CLASSES != elements:
        raise CheckpointError("its CSPNet encoder has smooth elements (a Linear layer); not known")
    inputs = state.shape("encoder.csp_layer_0.edge_mlp.0.weight")[1]
    # Two atoms, the metric tensor of the cell, sine and cosine of three axes.
    features = inputs - 2 * width - 9
    if features <= 0 or features % 6:
        raise CheckpointError(
            f"its CSPNet encoder has edges of {inputs} inputs for width {width}: only the variant "
            "with inner products of the cell and Fourier features is known"
        )
    if isinstance(module, Stub) and module.get("ip") is False:
        raise CheckpointError("its CSPNet encoder does not use inner products of the cell")
    return CSPNetSizes(
        d_model=width,
        num_layers=state.count(r"encoder\.csp_layer_(\d+)\."),
        num_freqs=features // 6,
        layer_norm="encoder.csp_layer_0.layer_norm.weight" in state,
    )


def predictor_sizes(state: State, options: Mapping[str, Any], vae: VAESizes) -> PredictorSizes:
    """Return the sizes of a predictor on a VAE.

    Raises:
        CheckpointError: its targets are missing, or do not fit its tensors.
    """
    targets = plain(options.get("target_conditions"))
    if not isinstance(targets, Mapping) or not targets:
        raise CheckpointError("its hyper_parameters do not tell its targets (target_conditions)")
    width, encoder_dim = state.shape("proj.0.weight")[1], vae.encoder.d_model
    if width not in (vae.latent_dim, vae.latent_dim + encoder_dim):
        raise CheckpointError(
            f"its head has {width} input features; its VAE has {vae.latent_dim} or, with those of "
            f"the encoder, {vae.latent_dim + encoder_dim}"
        )
    reduce = options.get("reduce", "mean")
    try:
        return PredictorSizes(
            latent_dim=vae.latent_dim,
            encoder_dim=encoder_dim,
            targets=tuple(_target(str(name), stats) for name, stats in targets.items()),
            # As the original reads it: all but "mean" is a sum.
            reduce="mean" if reduce == "mean" else "sum",
            use_encoder_features=width > vae.latent_dim,
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"its target_conditions cannot be read: {error}") from error


def _target(name: str, stats: Any) -> Target:
    mean, std = statistics(stats or {})
    return Target(name, mean, std)
