"""Sizes of the models: frozen structs that determine the parameters and are stored as JSON. Free of
JAX.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.models.condition_kinds import Condition, read_condition
from chemeleon2_jax.models.encoders.registry import EncoderSizes, TransformerSizes, read_encoder


@dataclass(frozen=True)
class DecoderSizes:
    """Sizes of the transformer decoder."""

    d_model: int = 512
    nhead: int = 8
    dim_feedforward: int = 2048
    num_layers: int = 8


@dataclass(frozen=True)
class VAESizes:
    """Everything that determines the parameters of a VAE."""

    latent_dim: int = 8
    encoder: EncoderSizes = field(default_factory=TransformerSizes)
    decoder: DecoderSizes = field(default_factory=DecoderSizes)
    atom_type_predict: bool = True
    foundation_alignment: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict, for JSON."""
        return {**asdict(self), "encoder": self.encoder.to_block()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> VAESizes:
        """Undo `to_dict`."""
        encoder, decoder = read_encoder(values["encoder"]), DecoderSizes(**values["decoder"])
        return VAESizes(**{**values, "encoder": encoder, "decoder": decoder})


COORDS_UNITS = ("fraction", "spacing")
"""Units of the coordinates' loss, see `losses.CoordsLoss`."""


@dataclass(frozen=True)
class LoRASizes:
    """Sizes of adapters, and the layers that have them.

    Attributes:
        rank: inner width of the product.
        alpha: strength; the product is multiplied by alpha / rank.
        targets: dotted paths of linear layers, or ends of paths: "mlp.fc1" in every block.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the values."""
        if self.rank < 1 or not self.targets:
            raise ValueError(
                f"LoRA needs a rank of at least 1 and targets, not {self.rank} and {self.targets}"
            )

    @property
    def scale(self) -> float:
        """Factor of the product."""
        return self.alpha / self.rank

    def applies_to(self, path: str) -> bool:
        """Whether the layer at a dotted path has an adapter."""
        parts = path.split(".")
        return any(".".join(parts[i:]) in self._targets for i in range(len(parts)))

    @cached_property
    def _targets(self) -> frozenset[str]:
        return frozenset(self.targets)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, for JSON."""
        return {**asdict(self), "targets": list(self.targets)}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> LoRASizes:
        """Undo `to_dict`."""
        return LoRASizes(**{**values, "targets": tuple(values["targets"])})


@dataclass(frozen=True)
class ConditionSizes:
    """Everything that determines the parameters of `Conditions`.

    Attributes:
        conditions: in the order in which their embeddings are joined.
        hidden_dim: width of the embedding; that of the denoiser.
        drop_prob: share of crystals with the null condition in training.
    """

    conditions: tuple[Condition, ...]
    hidden_dim: int
    drop_prob: float = 0.1

    def __post_init__(self) -> None:
        """Check the names."""
        names = [condition.name for condition in self.conditions]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"conditions must be one or more with different names, not {names}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the conditions."""
        return tuple(condition.name for condition in self.conditions)

    def encode_crystals(self, crystals: Crystals) -> dict[str, np.ndarray]:
        """Return the inputs of training crystals: name -> (G, width) float32.

        Raises:
            ValueError: a value that a condition cannot have.
        """
        return {c.name: c.encode_crystals(crystals) for c in self.conditions}

    def describe(self, crystals: Crystals, index: int) -> dict[str, str]:
        """Return name -> value of a training crystal, as a text that `Condition.read` takes."""
        return {c.name: c.describe(crystals, index) for c in self.conditions}

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict, for JSON."""
        return {**asdict(self), "conditions": [c.to_dict() for c in self.conditions]}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> ConditionSizes:
        """Undo `to_dict`."""
        conditions = tuple(map(read_condition, values["conditions"]))
        return ConditionSizes(**{**values, "conditions": conditions})


VARIANCE_LAYOUTS = ("per_token", "interleaved")


@dataclass(frozen=True)
class DiTSizes:
    """Everything that determines the parameters of a DiT, and the layout of its output.

    `variance_layout` is the place of eps and variance in the (T, 2L) output: `per_token` splits
    each token's output; `interleaved` is the layout of published weights (see `split_output`).
    `conditions` and `lora` are None for an unconditional model and one without adapters.
    `self_conditioning` gives the model its estimate of x_0 from the step before as an input.
    """

    latent_dim: int = 8
    hidden_size: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    learn_sigma: bool = True
    variance_layout: str = "per_token"
    conditions: ConditionSizes | None = None
    lora: LoRASizes | None = None
    self_conditioning: bool = False

    @property
    def variance_needs_padding(self) -> bool:
        """Whether the variance exists in padded rows alone; see `split_output`."""
        return self.learn_sigma and self.variance_layout == "interleaved"

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict, for JSON."""
        nested = {"conditions": self.conditions, "lora": self.lora}
        values = {**asdict(self), **{name: s and s.to_dict() for name, s in nested.items()}}
        if not self.self_conditioning:
            del values["self_conditioning"]  # earlier versions read the others
        return values

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> DiTSizes:
        """Undo `to_dict`; keys that an older version did not write are None."""
        readers = {"conditions": ConditionSizes.from_dict, "lora": LoRASizes.from_dict}
        stored = {name: values.get(name) for name in readers}
        nested = {k: None if v is None else readers[k](v) for k, v in stored.items()}
        return DiTSizes(**{**values, **nested})


# depth, hidden width, heads
NAMED_SIZES = {
    "S": (6, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
}


REDUCTIONS = ("mean", "sum")


@dataclass(frozen=True)
class Target:
    """A property, with mean and std in its unit; without them it is not standardised."""

    name: str
    mean: float | None = None
    std: float | None = None


@dataclass(frozen=True)
class PredictorSizes:
    """Everything that determines the parameters of a predictor, and the meaning of its output.

    Attributes:
        latent_dim: of the VAE.
        encoder_dim: width of the VAE's encoder.
        targets: predicted properties.
        reduce: pooling over a crystal's atoms: "mean" or "sum".
        use_encoder_features: pool the encoder's features beside the latents.
    """

    latent_dim: int
    encoder_dim: int
    targets: tuple[Target, ...]
    reduce: str = "mean"
    use_encoder_features: bool = True

    def __post_init__(self) -> None:
        """Check the values."""
        if self.reduce not in REDUCTIONS:
            raise ValueError(f"reduce is {self.reduce!r}; choose one of {REDUCTIONS}")
        names = [target.name for target in self.targets]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"targets must be one or more with different names, not {names}")

    @property
    def width(self) -> int:
        """Width of the per-atom features."""
        return self.latent_dim + (self.encoder_dim if self.use_encoder_features else 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict, for JSON."""
        return {**asdict(self), "targets": [asdict(target) for target in self.targets]}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> PredictorSizes:
        """Undo `to_dict`."""
        targets = tuple(Target(**target) for target in values["targets"])
        return PredictorSizes(**{**values, "targets": targets})


MAX_STEPS = 100_000


@dataclass(frozen=True)
class DiffusionConfig:
    """Diffusion chain of a denoiser; `target` is the quantity that it predicts."""

    num_steps: int = 1000
    schedule: str = "linear"
    target: str = "eps"

    def __post_init__(self) -> None:
        """Check the length; `Schedule.of` knows the names."""
        if isinstance(self.num_steps, bool) or not isinstance(self.num_steps, int):
            raise ValueError(f"num_steps is {self.num_steps!r:.60}; it must be a whole number")
        if not 1 <= self.num_steps <= MAX_STEPS:
            raise ValueError(f"num_steps is {self.num_steps:.6g}; it is 1 to {MAX_STEPS}")
