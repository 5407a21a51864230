"""The meta of a checkpoint: everything needed to build its model again, except the arrays.

On disk it is a flat JSON object. A new entry is optional and raises FORMAT_VERSION: a file without
it is read with its default, and a package that does not know it says which version wrote the file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from chemeleon2_jax.common.version import __version__
from chemeleon2_jax.models.latents import ChannelMoments
from chemeleon2_jax.models.sizes import DiffusionConfig, DiTSizes, PredictorSizes, VAESizes

FORMAT_VERSION = 4
"""0 is that of package 0.1.0, whose checkpoints do not state one; 2 adds `latent_channels`, 3
`vae.encoder.periodic_coords`, 4 `data`.
"""

SAMPLE_WEIGHTS = ("ema", "raw")

MAX_LAYERS = 1000
"""Of any part of a model: building one takes time for each layer, and more layers mean harm."""

_MOST_ATOMS, _MOST_CRYSTALS = 10_000, 10**12


@dataclass(frozen=True, kw_only=True)
class LDMMeta:
    """Of a latent diffusion model.

    Attributes:
        dit: sizes of the denoiser.
        diffusion: the chain it was trained on.
        latent_std: divisor of the latents.
        sample_weights: the weights to sample with: 'ema', the moving averages, or 'raw'.
        latent_channels: moments of each channel that standardise the latents in place of
            `latent_std`; None where that one number does.
    """

    dit: DiTSizes
    diffusion: DiffusionConfig
    latent_std: float
    sample_weights: str
    latent_channels: ChannelMoments | None = None

    @property
    def sample_item(self) -> str:
        """Item of the checkpoint with the weights to sample with."""
        return "ema" if self.sample_weights == "ema" else "params"


@dataclass(frozen=True, kw_only=True)
class TorchSource:
    """The PyTorch file that a model was converted from.

    Attributes:
        file: its name.
        ema: whether its moving averages were taken.
        dtypes: name of a tensor -> its dtype, where that is not float32.
        notes: remarks and assumptions of the conversion.
        epoch, global_step: of its training; 0 where the file states none.
    """

    file: str
    ema: bool = False
    dtypes: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    epoch: int = 0
    global_step: int = 0


@dataclass(frozen=True, kw_only=True)
class ModelMeta:
    """What a checkpoint says of its model.

    Attributes:
        stage: that trained it, e.g. 'train_vae'.
        vae: sizes of the VAE, which every model is or has.
        size_table: (N + 1,) training crystals by number of atoms.
        config: of the run, resolved; {} for a converted model.
        vae_config: config of the VAE's own run; None where that is `config`.
        ldm: of a latent diffusion model; None for other models.
        predictor: sizes of a predictor; None for other models.
        source: PyTorch file it was converted from, if any.
        data: digests of its training and validation crystals, of `data.digest`; {} where unknown.
        validation_floors: reward floors of an RL run of format version 0; later runs keep them in
            the checkpoint's progress.
        format_version, package_version: that wrote the file it was read from.
    """

    stage: str
    vae: VAESizes
    size_table: tuple[int, ...]
    config: Mapping[str, Any]
    vae_config: Mapping[str, Any] | None = None
    ldm: LDMMeta | None = None
    predictor: PredictorSizes | None = None
    source: TorchSource | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    validation_floors: Mapping[str, float] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    package_version: str = __version__

    @property
    def vae_item(self) -> str:
        """Item of the checkpoint with the VAE's weights."""
        return "params" if self.stage == "train_vae" else "vae"

    @property
    def config_of_vae(self) -> Mapping[str, Any]:
        """Config of the run that trained the VAE."""
        return self.config if self.vae_config is None else self.vae_config

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, in this version of the format."""
        entries: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "package_version": __version__,
            "stage": self.stage,
            "vae": self.vae.to_dict(),
            "size_table": list(self.size_table),
            "config": dict(self.config),
        }
        if self.vae_config is not None:
            entries["vae_config"] = dict(self.vae_config)
        if self.ldm is not None:
            entries |= {
                "dit": self.ldm.dit.to_dict(),
                "diffusion": asdict(self.ldm.diffusion),
                "latent_std": self.ldm.latent_std,
                "sample_weights": self.ldm.sample_weights,
            }
            if self.ldm.latent_channels is not None:
                entries["latent_channels"] = self.ldm.latent_channels.to_dict()
        if self.predictor is not None:
            entries["predictor"] = self.predictor.to_dict()
        if self.source is not None:
            entries["source"] = {**asdict(self.source), "notes": list(self.source.notes)}
        if self.data:
            entries["data"] = dict(self.data)
        if self.validation_floors:
            entries["validation_floors"] = dict(self.validation_floors)
        return entries

    @staticmethod
    def from_json(entries: Mapping[str, Any]) -> ModelMeta:
        """Read the JSON object, of this or an older version of the format.

        Raises:
            ValueError: an entry is missing, wrong or unknown.
        """
        try:
            return _from_json(entries)
        except ValueError as error:
            version, package = (entries.get(k) for k in ("format_version", "package_version"))
            if type(version) is int and version > FORMAT_VERSION:
                reason = (
                    f"version {version} of the format, written by version {package!s:.20} of this "
                    f"package; version {__version__} reads up to {FORMAT_VERSION}: update it"
                )
            else:
                reason = "the checkpoint is damaged, or was not written by this package"
            raise ValueError(f"its meta has {error}: {reason}") from error


def _from_json(entries: Mapping[str, Any]) -> ModelMeta:
    unknown = sorted(entries.keys() - _READERS.keys())
    if unknown:
        raise ValueError(f"an unknown entry {unknown[0]!r:.60}")
    values = {name: _read(name, value) for name, value in entries.items()}
    for name in (*_REQUIRED, *(_REQUIRED_OF_LDM if "dit" in values else ())):
        if name not in values:
            raise ValueError(f"no entry {name!r}")
    of_ldm = {name: values.pop(name) for name in _OF_LDM if name in values}
    channels = of_ldm.get("latent_channels")
    if channels is not None and len(channels.mean) != values["vae"].latent_dim:
        raise ValueError(
            f"a wrong entry 'latent_channels' ({len(channels.mean)} channels, where the VAE has "
            f"{values['vae'].latent_dim})"
        )
    ldm = LDMMeta(**of_ldm) if "dit" in of_ldm else None
    return ModelMeta(**{"format_version": 0, "package_version": "", **values}, ldm=ldm)


def _read(name: str, value: Any) -> Any:
    try:
        return _READERS[name](value)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"a wrong entry {name!r} ({error!r:.300})") from error


def read_size_table(values: Any) -> tuple[int, ...]:
    """Check training crystals by number of atoms.

    Raises:
        ValueError: not a list of whole numbers from 0, with a crystal in it; or an absurd one.
    """
    if not isinstance(values, list) or not all(type(n) is int and n >= 0 for n in values):
        raise ValueError("not a list of numbers of crystals")
    if not any(values[1:]):
        raise ValueError("no crystals")
    if len(values) > _MOST_ATOMS + 1 or max(values) > _MOST_CRYSTALS:
        raise ValueError(f"more than {_MOST_ATOMS} atoms or {_MOST_CRYSTALS} crystals")
    return tuple(values)


def _latent_std(value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise ValueError("not a number above 0")
    return float(value)


def _sample_weights(value: Any) -> str:
    if value not in SAMPLE_WEIGHTS:
        raise ValueError(f"{value!r:.30} is none of {', '.join(SAMPLE_WEIGHTS)}")
    return str(value)


def _vae(values: Any) -> VAESizes:
    sizes = VAESizes.from_dict(values)
    _check_layers(sizes.encoder.num_layers)
    _check_layers(sizes.decoder.num_layers)
    return sizes


def _dit(values: Any) -> DiTSizes:
    sizes = DiTSizes.from_dict(values)
    _check_layers(sizes.depth)
    return sizes


def _check_layers(count: Any) -> None:
    if type(count) is not int or not 0 <= count <= MAX_LAYERS:
        raise ValueError(f"{count!r:.30} layers; at most {MAX_LAYERS} are possible")


def _source(values: Any) -> TorchSource:
    return TorchSource(**{**values, "notes": tuple(values["notes"])})


def _of_type(kind: type) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise TypeError(f"{value!r:.60} is no {kind.__name__}")
        return value

    return read


_READERS: dict[str, Callable[[Any], Any]] = {
    "format_version": _of_type(int),
    "package_version": _of_type(str),
    "stage": _of_type(str),
    "vae": _vae,
    "size_table": read_size_table,
    "config": _of_type(dict),
    "vae_config": _of_type(dict),
    "dit": _dit,
    "diffusion": lambda values: DiffusionConfig(**values),
    "latent_std": _latent_std,
    "latent_channels": ChannelMoments.from_dict,
    "sample_weights": _sample_weights,
    "predictor": PredictorSizes.from_dict,
    "source": _source,
    "data": _of_type(dict),
    "validation_floors": _of_type(dict),
}
_REQUIRED = ("stage", "vae", "size_table", "config")
_REQUIRED_OF_LDM = ("dit", "diffusion", "latent_std", "sample_weights")
_OF_LDM = (*_REQUIRED_OF_LDM, "latent_channels")
