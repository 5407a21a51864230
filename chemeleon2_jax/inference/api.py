"""Trained models as Python objects: encode, decode, sample, denoise, predict.

import chemeleon2_jax as c2
ldm = c2.load_model("logs/train_ldm/runs/<run>")
structures = ldm.sample(num_samples=100, seed=0)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from pymatgen.core import Structure

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.crystals.structures import structure_from_arrays
from chemeleon2_jax.diffusion.gaussian import level_at, predictor
from chemeleon2_jax.diffusion.sampler import Sampler
from chemeleon2_jax.diffusion.samplers import default_sampler, make_sampler
from chemeleon2_jax.diffusion.schedule import Schedule
from chemeleon2_jax.inference.denoiser import denoiser
from chemeleon2_jax.inference.generator import CFG_SCALE, LARGEST_LATENT, Generator
from chemeleon2_jax.inference.requests import (
    Hits,
    composition_name,
    count_hits,
    encode_conditions,
    make_prompts,
)
from chemeleon2_jax.inference.vae import PredictorModel, VAEModel, batches, check_latents
from chemeleon2_jax.models.abstract import count_parameters
from chemeleon2_jax.models.condition_kinds import Condition
from chemeleon2_jax.models.meta import ModelMeta
from chemeleon2_jax.models.sizes import DiffusionConfig, DiTSizes
from chemeleon2_jax.pretrained.loading import LDMParts, ldm_of, open_model, predictor_of, vae_of
from chemeleon2_jax.rows.layout import to_slots
from chemeleon2_jax.rows.rows import Rows

_MAX_GENERATORS = 8  # each is a compiled program


@dataclass(frozen=True)
class Failure:
    """A crystal that could not be built: its index and the reason."""

    index: int
    reason: str


@dataclass(frozen=True)
class SampleReport:
    """Report of a call of `LDMModel.sample`.

    Attributes:
        seed: of all random numbers.
        num_atoms: (num_samples,) atoms of each crystal, also of those of other parts.
        indices: of the returned structures, in order.
        failures: the other crystals.
        sampler: with its name, steps and eta.
        conditions: as the caller gave them.
        cfg_scale: strength of the guidance.
        hits: name of a condition that the atoms tell of (composition, chemical system) -> crystals
            that were asked for it, and those that have it.
    """

    seed: int
    num_atoms: tuple[int, ...]
    indices: tuple[int, ...]
    failures: tuple[Failure, ...]
    sampler: Sampler
    conditions: dict[str, Any] = field(default_factory=dict)
    cfg_scale: float = CFG_SCALE
    hits: dict[str, Hits] = field(default_factory=dict)


@dataclass(repr=False)
class LDMModel:
    """A trained latent diffusion model.

    Attributes:
        parts: sizes and parameters; the weights are those to sample with.
        meta: of its checkpoint.
        last_report: of the last call of `sample`.
    """

    parts: LDMParts
    meta: ModelMeta = field(repr=False)
    last_report: SampleReport | None = None
    _generators: dict[tuple[Sampler, float], Generator] = field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        names = ", ".join(condition.name for condition in self.conditions) or "none"
        size, diffusion = self.parts.sizes, self.parts.diffusion
        return (
            f"LDMModel({count_parameters(self.parts.params) / 1e6:.3g} million parameters, "
            f"{size.depth} blocks of width {size.hidden_size}, target {diffusion.target}, "
            f"conditions: {names}, {self.vae!r})"
        )

    @property
    def vae(self) -> VAEModel:
        """The VAE of its latents."""
        return VAEModel(self.parts.vae, self.meta)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The conditions that it takes."""
        return self.parts.sizes.conditions.conditions if self.parts.sizes.conditions else ()

    @property
    def composition(self) -> str | None:
        """Name of the condition that is a composition; None without one."""
        return composition_name(self.parts)

    def untrained_request(self, conditions: Mapping[str, Any]) -> str:
        """Return a warning where some of the conditions are left out and the model was trained with
        all of them or none; '' elsewhere.
        """
        missing = [c.name for c in self.conditions if conditions.get(c.name) is None]
        if not missing or len(missing) == len(self.conditions):
            return ""
        module = self.meta.config.get("ldm_module")  # RL keeps no config of its start
        if module is None or module["condition_module"].get("drop") == "each":
            return ""
        return (
            f"without {', '.join(missing)}: the model was trained with all of its conditions or "
            "with none; one with ldm_module.condition_module.drop=each learns them apart"
        )

    def sample(
        self,
        num_samples: int | None = None,
        *,
        seed: int = 0,
        num_atoms: Sequence[int] | None = None,
        conditions: Mapping[str, Any] | None = None,
        cfg_scale: float = CFG_SCALE,
        sampler: str = "",
        steps: int = 50,
        eta: float | None = None,
        chunk_size: int = 0,
        on_done: Callable[[int], None] | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> list[Structure]:
        """Generate crystals and return those that could be built, in the order of their index.
        `last_report` has the others.

        Several processes may call this independently: each uses its own devices only.

        Args:
            num_samples: number of crystals; by default that of the sizes, or of the values of a
                condition.
            seed: the same seed gives the same crystals for any chunks and devices.
            num_atoms: sizes, one a crystal; with `num_samples` they are repeated in turn. By
                default those of the compositions, else drawn from the sizes of the training set.
            conditions: name -> one value, or a list with one a crystal: composition "Ba1Cr1F6",
                chemical_system "Ba-Cr-F", a category's int, a float in raw units. None is the null
                condition. A VAE that does not predict atom types takes them from the composition.
            cfg_scale: strength of the guidance towards the conditions; 1 is no guidance.
            sampler: a name in `diffusion.samplers.SAMPLERS`; '' is the model's own: `euler` for
                flow models, `ddim` for others.
            steps: of the sampler, at most those of the training chain.
            eta: share of the noise, for samplers with this option; 0 is deterministic; None is the
                sampler's own: 1 for ddim, 0 for others.
            chunk_size: crystals at once; 0 chooses by memory.
            on_done: called with the number of crystals of each finished chunk (a progress bar's
                `update`).
            part: (i, n) generates part i of n equal parts of the crystals, for n processes that
                divide them; i counts from 0.

        Raises:
            ValueError: a value out of range, or a condition that the model does not take.
        """
        if chunk_size < 0:
            raise ValueError(f"chunk_size is {chunk_size}; it is 0 or more")
        if not 0 <= seed < 2**32:
            raise ValueError(f"seed is {seed}; it is 0 to 2**32 - 1")  # JAX drops higher bits
        prompts = make_prompts(
            self.parts,
            num_samples=num_samples,
            num_atoms=num_atoms,
            conditions=conditions,
            seed=seed,
        )
        name = sampler or default_sampler(self.parts.diffusion.target)
        chosen = make_sampler(name, steps, eta)
        count, (number, num_parts) = len(prompts.num_atoms), part
        first, end = count * number // num_parts, count * (number + 1) // num_parts
        own = prompts.part(first, end)
        generated = self._generator(chosen, float(cfg_scale)).generate(
            own.num_atoms,
            seed=seed,
            conditions=own.conditions,
            atom_types=own.atom_types,
            first_index=first,
            chunk_size=chunk_size,
            on_done=on_done,
        )
        structures, indices, failures = [], [], []
        for index, arrays in enumerate(generated.crystals, start=first):
            try:
                structures.append(structure_from_arrays(*arrays))
                indices.append(index)
            except ValueError as error:
                failures.append(Failure(index, str(error)))
        built = set(indices)
        self.last_report = SampleReport(
            seed,
            tuple(prompts.num_atoms.tolist()),
            tuple(indices),
            tuple(failures),
            chosen,
            conditions=dict(conditions or {}),
            cfg_scale=cfg_scale,
            hits=count_hits(
                conditions or {},
                self.parts.sizes.conditions,
                [c[0] if i in built else None for i, c in enumerate(generated.crystals, first)],
                first=first,
                count=count,
            ),
        )
        return structures

    def _generator(self, sampler: Sampler, cfg_scale: float) -> Generator:
        """Return a generator; it is kept for the next call, with its compiled programs."""
        key = (sampler, cfg_scale if self.conditions else CFG_SCALE)
        generator = self._generators.pop(key, None)
        if generator is None:
            generator = Generator(self.parts, sampler, cfg_scale=cfg_scale)
        self._generators[key] = generator  # in the order of their last use
        while len(self._generators) > _MAX_GENERATORS:
            del self._generators[next(iter(self._generators))]
        return generator

    def standardise(self, latents: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return latents of the VAE (n_atoms, L) as `denoise` takes them: over latent_std, or
        standardised channel by channel.
        """
        return [self.parts.standardise(np.asarray(z, np.float32)) for z in latents]

    def denoise(
        self,
        latents: Sequence[np.ndarray],
        t: Sequence[int] | np.ndarray,
        *,
        conditions: Mapping[str, Any] | None = None,
    ) -> list[np.ndarray]:
        """Return the noise prediction, (n_atoms, L) each.

        Args:
            latents: (n_atoms, L) each, from `standardise`, as the denoiser takes them.
            t: (n,) diffusion times, 0 to 999, one a latent.
            conditions: as in `sample`, without guidance; by default the null condition.

        Raises:
            ValueError: wrong shapes, times out of range, or conditions that the model does not
                take.
        """
        if not len(latents) and not len(t):
            return []
        times = np.asarray(t)  # (n,)
        last = self.parts.diffusion.num_steps - 1
        if times.shape != (len(latents),) or not np.issubdtype(times.dtype, np.integer):
            raise ValueError(f"t must be {len(latents)} integers, one a latent; it is {times!r}")
        if len(times) and (times.min() < 0 or times.max() > last):
            raise ValueError(
                f"diffusion times go from 0 to {last}; got {times.min()}..{times.max()}"
            )
        check_latents(latents, self.parts.sizes.latent_dim)
        for index, z in enumerate(latents):
            if not (np.abs(z) < LARGEST_LATENT).all():
                raise ValueError(f"latent {index} is not finite")
        crystals = Crystals.from_list(
            [(np.ones(len(z)), np.zeros((len(z), 3)), np.eye(3)) for z in latents]
        )
        encoded = encode_conditions(conditions, self.parts.sizes.conditions, len(latents))
        flat = np.concatenate([np.asarray(z, np.float32) for z in latents])
        fn = _jitted_eps(self.parts.graphdef, self.parts.sizes, self.parts.diffusion)
        predictions: list[np.ndarray] = []
        for rows, where in batches(crystals, features={"latent": flat}, conditions=encoded):
            done = len(predictions)
            batch_times = times[done : done + len(where.sizes)].astype(np.int32)
            eps = fn(self.parts.params, rows, to_slots(batch_times, where))
            predictions += where.split_atoms(eps)
        return predictions


def load_model(
    name: str | Path,
    *,
    vae: str | Path = "",
    ema: bool = False,
    size_table: str = "",
    verify: bool = True,
) -> VAEModel | LDMModel | PredictorModel:
    """Open a trained model.

    Args:
        name: a run folder (its best checkpoint), a checkpoint folder, a PyTorch `.ckpt` file, or
            the key of a published checkpoint ("mp_20_vae"), which is downloaded once.
        vae: the VAE, named likewise, for the PyTorch file of an LDM that does not hold it.
        ema: take the moving averages of a PyTorch file, not its raw weights.
        size_table: of a PyTorch file, "mp-20" or "mp-120"; see `loading.open_model`.
        verify: compare the arrays with the checkpoint's checksums, half a second for 10^9 bytes on
            one core; False for a huge checkpoint that is known to be whole.

    Raises:
        CheckpointError: no model of this name, or a broken one; an array with another checksum than
            when it was written is named.
    """
    model = open_model(name, vae=vae, ema=ema, size_table=size_table, verify=verify)
    meta = model.meta
    if meta.predictor is not None:
        return PredictorModel(predictor_of(model), meta)
    if meta.ldm is not None:
        return LDMModel(ldm_of(model), meta)
    if meta.stage == "train_vae":
        return VAEModel(vae_of(model), meta)
    raise CheckpointError(
        f"{model.path} was written by stage {meta.stage!r}, which this version cannot open"
    )


@lru_cache(maxsize=8)
def _jitted_eps(graphdef: Any, sizes: DiTSizes, diffusion: DiffusionConfig) -> Any:
    schedule = Schedule.of(diffusion)

    def eps(params: Any, rows: Rows, t: jax.Array) -> jax.Array:
        denoise = denoiser(nnx.merge(graphdef, params), sizes, rows)
        predict = predictor(denoise, target=diffusion.target, rows=rows)
        return predict(rows.features["latent"], level_at(t, schedule=schedule, rows=rows)).eps

    return jax.jit(eps)
