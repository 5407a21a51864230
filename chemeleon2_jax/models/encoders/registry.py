"""Sizes of the VAE's encoders by name. Free of JAX, since configs are built and checked with them.

A new encoder is a file `<name>.py` in this folder and a class of sizes here, listed in ENCODERS.
The file has a class `Encoder`, an nnx.Module:

    Encoder(sizes, *, rngs, dtype)      float32 parameters, computed in `dtype`
    encoder(rows) -> (R * T, d_model)   features of all tokens, finite on padding too
    encoder.atom_types                  (NUM_ATOM_CLASSES, width), an embedding of the elements, by
                                        which rewards compare compositions

The block `vae_module.encoder` of a config, and that of a checkpoint, holds the options of all
encoders. An option that two of them share has one meaning and one default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class EncoderSizes:
    """Options of an encoder: numbers, flags and texts; whole numbers are 1 or more.

    Attributes:
        name: of the encoder and of its file.
        needs_edges: whether it needs the pairs of atoms, `Rows.edges`.
        d_model: width of the per-atom features that it returns.
        num_layers: layers of the network.
    """

    name: ClassVar[str]
    needs_edges: ClassVar[bool] = False
    d_model: int = 512
    num_layers: int = 8

    def build(self, *, rngs: Any, dtype: Any) -> Any:
        """Return the network with new parameters."""
        module = import_module(f"chemeleon2_jax.models.encoders.{self.name}")
        return module.Encoder(self, rngs=rngs, dtype=dtype)

    def to_block(self) -> dict[str, Any]:
        """Return the block of a config or checkpoint: the name, own options, and those of other
        encoders with their defaults.
        """
        return {"name": self.name, **default_options(), **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class TransformerSizes(EncoderSizes):
    """Transformer with `nhead` attention heads and `dim_feedforward` hidden values; with
    `periodic_coords` it reads sin and cos of the coordinates beside the fractions.
    """

    name: ClassVar[str] = "transformer"
    nhead: int = 8
    dim_feedforward: int = 2048
    periodic_coords: bool = False


@dataclass(frozen=True, kw_only=True)
class CSPNetSizes(EncoderSizes):
    """CSPNet with `num_freqs` Fourier features an axis; `layer_norm` normalises each layer."""

    name: ClassVar[str] = "cspnet"
    needs_edges: ClassVar[bool] = True
    num_freqs: int = 10
    layer_norm: bool = True


ENCODERS: dict[str, type[EncoderSizes]] = {
    sizes.name: sizes for sizes in (TransformerSizes, CSPNetSizes)
}


def read_encoder(block: Mapping[str, Any]) -> EncoderSizes:
    """Return the sizes in a block of a config or checkpoint.

    Raises:
        ValueError: an unknown encoder, or an option that no encoder has.
    """
    options = dict(block)
    name = options.pop("name", None)
    if name not in ENCODERS:
        raise ValueError(f"encoder.name is {name!r}; choose one of {', '.join(ENCODERS)}")
    unknown = sorted(options.keys() - default_options().keys())
    if unknown:
        raise ValueError(f"no encoder has the option {unknown[0]!r}")
    own = {field.name for field in fields(ENCODERS[name])}
    return ENCODERS[name](**{key: value for key, value in options.items() if key in own})


def default_options() -> dict[str, Any]:
    """Return the options of all encoders with their defaults."""
    return {field.name: field.default for sizes in ENCODERS.values() for field in fields(sizes)}
