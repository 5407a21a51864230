r"""Measure training steps and sampling at the published sizes, packed and padded, in one run.

    python launch/benchmark.py
    python launch/benchmark.py --data_dir=<folder with train.csv and val.csv> --batch_size=256 \
        --json=outputs/benchmark.json
    python launch/benchmark.py --parts=vae,ldm --precision=bf16
    python launch/benchmark.py --parts=ldm,ldm_cached  # without and with cached posteriors
    python launch/benchmark.py --parts=rl --num_samples=16     # an update of a rollout

Prints a table and, with --json, writes the numbers. Useful FLOP are those of matmuls on atoms and
crystals, without padding, as a share of the rate of a large matmul in the same run and precision.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chemeleon2_jax.crystals.arrays import Crystals
from chemeleon2_jax.data.augment import Augmentation, augment
from chemeleon2_jax.data.datasets import load_split
from chemeleon2_jax.data.loader import Loader
from chemeleon2_jax.diffusion.samplers import make_sampler
from chemeleon2_jax.inference.generator import Generator
from chemeleon2_jax.models.abstract import count_parameters
from chemeleon2_jax.models.dit import DiT
from chemeleon2_jax.models.losses import LossWeights, total_loss
from chemeleon2_jax.models.sizes import NAMED_SIZES, DiffusionConfig, DiTSizes, VAESizes
from chemeleon2_jax.models.vae import VAE
from chemeleon2_jax.pretrained.loading import LDMParts, VAEParts
from chemeleon2_jax.rl.update import Chunk, Objective
from chemeleon2_jax.rows.layout import Layout
from chemeleon2_jax.rows.rows import Rows
from chemeleon2_jax.runs import command_line as cli
from chemeleon2_jax.stages.ldm import ldm_terms
from chemeleon2_jax.stages.posteriors import as_features
from chemeleon2_jax.stages.rl.programs import Settings, make_programs
from chemeleon2_jax.stages.vae import autoencoder_terms
from chemeleon2_jax.training.config import PRECISIONS, FitConfig
from chemeleon2_jax.training.parallel import make_mesh, replicate, shard_batch
from chemeleon2_jax.training.state import init_state
from chemeleon2_jax.training.step import Updater, make_train_step

CRYSTAL_LAYERS = frozenset(("modulation", "final_modulation", "t_embedder", "lattices"))
"""Layers that work on each crystal, not on each atom."""

PARTS, LAYOUTS = ("vae", "ldm", "ldm_cached", "sample", "rl"), ("packed", "padded")

FLAGS = flags.FLAGS
flags.DEFINE_string("data_dir", "", "Folder with train.csv[.gz]; default: --data_name.")
flags.DEFINE_string("data_name", "prototypes", "Named data set.")
flags.DEFINE_integer("batch_size", 256, "Crystals in a training step.", lower_bound=1)
flags.DEFINE_integer("num_samples", 64, "Crystals to sample.", lower_bound=1)
flags.DEFINE_integer("steps", 50, "Steps of sampling.", lower_bound=1)
flags.DEFINE_integer("repeats", 3, "Timed steps, after one that compiles.", lower_bound=1)
flags.DEFINE_list("parts", ["vae", "ldm", "sample"], f"Parts to measure: {', '.join(PARTS)}.")
flags.DEFINE_list("layouts", list(LAYOUTS), "Result layouts to compare.")
flags.DEFINE_enum("size", "B", list(NAMED_SIZES), "Size of the DiT.")
flags.DEFINE_enum("precision", "f32", list(PRECISIONS), "Precision of the models.")
flags.DEFINE_string("json", "", "File to write the numbers to.")
for name, known in (("parts", PARTS), ("layouts", LAYOUTS)):
    flags.register_validator(
        name,
        lambda names, known=known: bool(names) and set(names) <= set(known),
        message=f"give one or more of {','.join(known)}",
    )

Result = dict[str, Any]


def matmul_rate(dtype: Any, size: int = 2048) -> float:
    """Return the FLOP/s of a square matmul, the best of several."""
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: a @ b)
    jax.block_until_ready(product(x, x))
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        jax.block_until_ready(product(x, x))
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def kernel_parameters(params: Any, *, per_crystal: bool) -> int:
    """Count the parameters of linear layers per atom, or per crystal (adaLN, time)."""
    total = 0
    for path, leaf in nnx.to_flat_state(params):
        names = [str(p) for p in path]
        of_crystal = not CRYSTAL_LAYERS.isdisjoint(names)
        if names[-1] == "kernel" and of_crystal == per_crystal:
            total += int(np.prod(leaf.shape))
    return total


def linear_flop(params: Any, num_atoms: int, num_crystals: int) -> float:
    """Return the FLOP of one forward pass through the linear layers."""
    atoms = kernel_parameters(params, per_crystal=False) * num_atoms
    return 2.0 * (atoms + kernel_parameters(params, per_crystal=True) * num_crystals)


def attention_flop(sizes: np.ndarray, width: int, depth: int) -> float:
    """Return the FLOP of attention within crystals in one forward pass: scores, weighted sum."""
    return 4.0 * width * depth * float((sizes.astype(np.int64) ** 2).sum())


@dataclass(frozen=True)
class TrainingCase:
    """A training step to time: loss function, its parameters and frozen ones, useful FLOP."""

    loss_fn: Callable[..., Any]
    params: Any
    frozen: Any
    flop: float


def time_training(case: TrainingCase, batches: list[Rows], mesh: Mesh) -> Result:
    """Compile and time steps over batches (rows on the host) of one shape."""
    updater = Updater.from_config(FitConfig(gradient_clip_val=1.0), total_steps=1000)
    state = init_state(case.params, updater.tx, seed=0, ema=False, mesh=mesh)
    frozen = replicate(case.frozen, mesh)
    step = make_train_step(case.loss_fn, updater, mesh=mesh)
    on_device = [shard_batch(rows, mesh) for rows in batches]
    start = time.perf_counter()
    compiled = step.lower(state, frozen, on_device[0]).compile()
    compile_seconds = time.perf_counter() - start
    state, _ = jax.block_until_ready(compiled(state, frozen, on_device[0]))
    seconds = []
    for i in range(FLAGS.repeats):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, frozen, on_device[i % len(on_device)]))
        seconds.append(time.perf_counter() - start)
    return {
        "compile_s": compile_seconds,
        "seconds": statistics.median(seconds),
        "memory_gb": program_memory(compiled),
    }


def program_memory(compiled: Any) -> float:
    """Return the peak memory of a compiled program on a device in GB: arguments, results that do
    not alias them, and temporaries.
    """
    m = compiled.memory_analysis()
    extra = m.output_size_in_bytes - m.alias_size_in_bytes
    return (m.argument_size_in_bytes + extra + m.temp_size_in_bytes) / 1e9


def build_model(size_table: np.ndarray, dtype: Any) -> LDMParts:
    """Return a latent diffusion model of the published sizes with new parameters."""
    vae_sizes = VAESizes()
    depth, hidden, heads = NAMED_SIZES[FLAGS.size]
    dit_sizes = DiTSizes(hidden_size=hidden, depth=depth, num_heads=heads)
    vae_graph, vae_params = nnx.split(VAE(vae_sizes, rngs=nnx.Rngs(0), dtype=dtype), nnx.Param)
    dit_graph, dit_params = nnx.split(DiT(dit_sizes, rngs=nnx.Rngs(0), dtype=dtype), nnx.Param)
    return LDMParts(
        dit_sizes,
        dit_graph,
        dit_params,
        diffusion=DiffusionConfig(),
        vae=VAEParts(vae_sizes, vae_graph, vae_params),
        latent_std=1.0,
        size_table=size_table,
    )


def training_cases(ldm: LDMParts, sizes: np.ndarray) -> dict[str, TrainingCase]:
    """Return the training steps of VAE and denoiser for a batch of crystals of given sizes."""
    weights, vae = LossWeights(), ldm.vae

    def vae_loss(params: Any, frozen: Any, key: jax.Array, rows: Any) -> Any:
        augment_key, sample_key = jax.random.split(key)
        clean = augment(augment_key, rows, Augmentation())
        terms = autoencoder_terms(vae.module(params), clean, clean, key=sample_key)
        return total_loss(terms, weights)

    def ldm_loss(params: Any, frozen: Any, key: jax.Array, rows: Any) -> Any:
        terms = ldm_terms(ldm, params, rows, frozen={"vae": frozen}, key=key)
        total, count = terms["total_loss"]
        return total / count, {}

    num_atoms, count = int(sizes.sum()), len(sizes)
    encoder, decoder = vae.sizes.encoder, vae.sizes.decoder
    encode = linear_flop(vae.params["encoder"], num_atoms, count)
    encode += attention_flop(sizes, encoder.d_model, encoder.num_layers)
    decode = linear_flop(vae.params["decoder"], num_atoms, count)
    decode += attention_flop(sizes, decoder.d_model, decoder.num_layers)
    return {
        "vae": TrainingCase(vae_loss, vae.params, {}, 3 * (encode + decode)),
        "ldm": TrainingCase(
            ldm_loss, ldm.params, vae.params, encode + 3 * denoise_flop(ldm, sizes)
        ),
        "ldm_cached": TrainingCase(ldm_loss, ldm.params, {}, 3 * denoise_flop(ldm, sizes)),
    }


def measure_training(
    crystals: Crystals, ldm: LDMParts, mesh: Mesh, *, padded_tokens: int, rate: float
) -> Iterator[Result]:
    """Yield a row for each training step of --parts."""
    layout = Layout.plan(
        crystals.num_atoms,
        FLAGS.batch_size,
        num_devices=mesh.devices.size,
        padded_tokens=padded_tokens,
    )
    loader = Loader(crystals, FLAGS.batch_size, layout)
    batches = [loader.batch(i) for i in range(min(8, loader.steps_per_epoch))]
    # One program is timed, on the batches of its shape; the share of useful tokens is over all.
    shape = batches[0].arrays.position.shape
    timed = [batch.arrays for batch in batches if batch.arrays.position.shape == shape]
    sizes = crystals.num_atoms[loader.indices(0)]
    for part, case in training_cases(ldm, sizes).items():
        if part in FLAGS.parts:
            cached = with_posteriors(timed, ldm.sizes.latent_dim) if part == "ldm_cached" else timed
            row = time_training(case, cached, mesh)
            yield {
                **row,
                "part": f"{part} train",
                "crystals_per_s": len(sizes) / row["seconds"],
                "useful_tokens": statistics.mean(batch.useful_tokens for batch in batches),
                "useful_flop_share": case.flop / row["seconds"] / rate,
            }


def with_posteriors(batches: list[Rows], latent_dim: int) -> list[Rows]:
    """Return batches with posteriors, whose values do not matter for the time."""
    moments = [np.zeros((*rows.position.shape, latent_dim), np.float32) for rows in batches]
    pairs = zip(batches, moments, strict=True)
    return [replace(rows, features=as_features(zeros, zeros)) for rows, zeros in pairs]


def measure(
    crystals: Crystals, ldm: LDMParts, mesh: Mesh, *, padded_tokens: int, rate: float
) -> Iterator[Result]:
    """Yield a row for each of --parts in one layout; padded_tokens = 0 is the packed one."""
    yield from measure_training(crystals, ldm, mesh, padded_tokens=padded_tokens, rate=rate)
    if "sample" in FLAGS.parts:
        row = time_sampling(ldm, mesh, padded_tokens=padded_tokens, rate=rate)
        yield {**row, "part": "sample"}
    if "rl" in FLAGS.parts:
        row = time_update(ldm, mesh, padded_tokens=padded_tokens, rate=rate)
        yield {**row, "part": "rl update"}


def main() -> int:
    """Measure the parts and layouts of the flags."""
    dtype, mesh = jnp.dtype(PRECISIONS[FLAGS.precision]), make_mesh()
    crystals = load_split(FLAGS.data_name, "train", data_dir=FLAGS.data_dir).crystals
    ldm = build_model(np.bincount(crystals.num_atoms), dtype)
    rate = matmul_rate(dtype)
    rows: list[Result] = []
    for layout in FLAGS.layouts:
        padded_tokens = int(crystals.num_atoms.max()) if layout == "padded" else 0
        for row in measure(crystals, ldm, mesh, padded_tokens=padded_tokens, rate=rate):
            rows.append({**row, "layout": layout})
            print(json.dumps(rows[-1]), flush=True)
    report(
        {
            "device": f"{mesh.devices.size} x {mesh.devices.flat[0].device_kind}",
            "precision": FLAGS.precision,
            "matmul_gflop_per_s": rate / 1e9,
            "vae_parameters": count_parameters(ldm.vae.params),
            "dit_parameters": count_parameters(ldm.params),
            "batch_size": FLAGS.batch_size,
            "rows": rows,
        }
    )
    return 0


def draw_sizes(ldm: LDMParts) -> np.ndarray:
    """Draw the sizes of --num_samples crystals from the model's size table."""
    table = ldm.size_table / ldm.size_table.sum()
    rng = np.random.default_rng(0)
    return rng.choice(len(table), FLAGS.num_samples, p=table).astype(np.int32)


def denoise_flop(ldm: LDMParts, sizes: np.ndarray) -> float:
    """Return the FLOP of one call of the denoiser."""
    linear = linear_flop(ldm.params, int(sizes.sum()), len(sizes))
    return linear + attention_flop(sizes, ldm.sizes.hidden_size, ldm.sizes.depth)


def time_sampling(ldm: LDMParts, mesh: Mesh, *, padded_tokens: int, rate: float) -> Result:
    """Time the compiled chain and decoder for --num_samples crystals."""
    sizes = draw_sizes(ldm)
    generator = Generator(ldm, make_sampler(steps=FLAGS.steps), mesh=mesh)
    arguments, where = generator.program_arguments(sizes, seed=0, padded_tokens=padded_tokens)
    start = time.perf_counter()
    compiled = generator.program.lower(*arguments).compile()
    compile_seconds = time.perf_counter() - start
    jax.block_until_ready(compiled(*arguments))
    start = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    seconds = time.perf_counter() - start
    return {
        "compile_s": compile_seconds,
        "seconds": seconds,
        "memory_gb": program_memory(compiled),
        "crystals_per_s": len(sizes) / seconds,
        "useful_tokens": where.useful_share,
        "useful_flop_share": FLAGS.steps * denoise_flop(ldm, sizes) / seconds / rate,
    }


def time_update(ldm: LDMParts, mesh: Mesh, *, padded_tokens: int, rate: float) -> Result:
    """Time one pass over the chains of --num_samples crystals, in float32.

    The memory of its temporaries is compared with that for four times the steps.
    """
    sizes = draw_sizes(ldm)
    updater = Updater.from_config(FitConfig(gradient_clip_val=1.0), total_steps=1000)

    def prepare(steps: int) -> Any:
        sampler = make_sampler(steps=steps)
        generator = Generator(ldm, sampler, mesh=mesh)
        arguments, where = generator.program_arguments(sizes, seed=0, padded_tokens=padded_tokens)
        rows = arguments[-1]
        settings = Settings(sampler, 1.0, Objective(), 1, norm_in_groups=False, seed=0)
        programs = make_programs(ldm, settings, updater=updater, mesh=mesh, with_reference=False)
        slots = rows.is_crystal.shape
        chunk = Chunk(
            rows=rows,
            states=jnp.zeros((steps + 1, *rows.position.shape, ldm.sizes.latent_dim)),
            old_log_probs=jnp.zeros((sampler.num_drawn, *slots)),
            advantages=jnp.ones(slots),
            weights=rows.is_crystal.astype(jnp.float32),
            share=jnp.float32(1.0),
            is_drawn_with=jnp.bool_(True),
        )
        arguments = (replicate(ldm.params, mesh), {}, chunk)
        return programs.run_pass.lower(*arguments).compile(), arguments, where

    start = time.perf_counter()
    compiled, arguments, where = prepare(FLAGS.steps)
    compile_seconds = time.perf_counter() - start
    start = time.perf_counter()
    jax.block_until_ready(compiled(*arguments))
    seconds = time.perf_counter() - start
    longer, _, _ = prepare(4 * FLAGS.steps)
    temporaries = [c.memory_analysis().temp_size_in_bytes / 1e9 for c in (compiled, longer)]
    return {
        "compile_s": compile_seconds,
        "seconds": seconds,
        "memory_gb": program_memory(compiled),
        "temporaries_gb": temporaries[0],
        "temporaries_gb_of_4_times_the_steps": temporaries[1],
        "crystals_per_s": len(sizes) / seconds,
        "useful_tokens": where.useful_share,
        "useful_flop_share": 3 * (FLAGS.steps - 1) * denoise_flop(ldm, sizes) / seconds / rate,
    }


def report(results: dict[str, Any]) -> None:
    """Print the table and write the JSON."""
    title = (
        f"{results['device']}, {results['precision']}, "
        f"matmul {results['matmul_gflop_per_s']:.0f} GFLOP/s; parameters: "
        f"VAE {results['vae_parameters'] / 1e6:.1f} M, DiT {results['dit_parameters'] / 1e6:.1f} M"
    )
    table = Table(title=title)
    columns = {
        "seconds": "{:.3f}",
        "crystals_per_s": "{:.2f}",
        "useful_tokens": "{:.1%}",
        "useful_flop_share": "{:.1%}",
        "compile_s": "{:.1f}",
        "memory_gb": "{:.2f}",
    }
    for name in ("part", "layout", *columns, "packed / padded"):
        table.add_column(name, justify="right" if name in columns else "left")
    padded = {r["part"]: r["seconds"] for r in results["rows"] if r["layout"] == "padded"}
    for row in results["rows"]:
        speedup = ""
        if row["layout"] == "packed" and row["part"] in padded:
            row["speedup_over_padded"] = padded[row["part"]] / row["seconds"]
            speedup = f"{row['speedup_over_padded']:.2f} x"
        cells = [style.format(row[name]) for name, style in columns.items()]
        table.add_row(row["part"], row["layout"], *cells, speedup)
    Console(width=140).print(table)
    if FLAGS.json:
        path = Path(FLAGS.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=2))
        print(f"written to {path}")


if __name__ == "__main__":
    cli.run(main)
