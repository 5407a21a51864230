r"""Measure the quality of generated crystals against the steps of the sampler, by size of the cell.

    python launch/quality_curve.py --model=logs/train_ldm/runs/<run> --output_dir=outputs/curve
    python launch/quality_curve.py --model=... --samplers=euler,heun --steps=4,10,50 \
        --num_samples=2000 --output_dir=outputs/curve

Sizes and first noise of the crystals are the same at all steps. Writes curve.json, the table
curve.md and the picture curve.png. Heun calls the model twice a step.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from absl import flags, logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.diffusion.samplers import SAMPLERS, default_sampler, make_sampler
from chemeleon2_jax.runs import command_line as cli
from launch.curves import Point, as_table, draw, measure

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "", "A latent diffusion model, as for chemeleon2_jax.sample.")
flags.DEFINE_list("samplers", [], "Samplers; default: the model's own, and unipc.")
flags.DEFINE_list("steps", ["4", "8", "10", "16", "20", "50", "250"], "Numbers of steps.")
flags.DEFINE_integer("num_samples", 1000, "Crystals at each number of steps.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Of sizes and noise.", lower_bound=0)
flags.DEFINE_string("output_dir", "", "Folder to write to.")


def main() -> int:
    """Sample at each number of steps, and write the curve."""
    for name in ("model", "output_dir"):
        if not getattr(FLAGS, name):
            raise ConfigError(f"give --{name}")
    unknown = [name for name in FLAGS.samplers if name not in SAMPLERS]
    if unknown:
        raise ConfigError(f"--samplers: {unknown[0]!r} is none of {', '.join(SAMPLERS)}")
    if not FLAGS.steps or not all(text.isdecimal() and int(text) for text in FLAGS.steps):
        raise ConfigError(f"--steps is {','.join(FLAGS.steps)!r}; give integers, as in 4,10,50")
    output_dir = Path(FLAGS.output_dir)
    cli.check_output_dir(output_dir)
    cli.make_output_dir(output_dir)
    points = _measure_all([int(text) for text in FLAGS.steps])
    content = json.dumps([asdict(point) for point in points], indent=1) + "\n"
    cli.write_file(output_dir / "curve.json", content.encode())
    cli.write_file(output_dir / "curve.md", as_table(points).encode())
    draw(points, output_dir / "curve.png")
    print(as_table(points))
    return 0


def _measure_all(all_steps: Sequence[int]) -> list[Point]:
    # After the flags are checked: loading JAX takes seconds.
    from chemeleon2_jax.inference.api import LDMModel, load_model
    from chemeleon2_jax.inference.generator import Generator, draw_num_atoms
    from chemeleon2_jax.training.compilation import enable_compilation_cache

    enable_compilation_cache()
    model = load_model(FLAGS.model)
    if not isinstance(model, LDMModel) or not model.parts.vae.sizes.atom_type_predict:
        raise ConfigError(f"{FLAGS.model} does not generate crystals without a composition")
    own = default_sampler(model.parts.diffusion.target)
    num_atoms = draw_num_atoms(model.parts.size_table, FLAGS.num_samples, FLAGS.seed)
    points: list[Point] = []
    for name in FLAGS.samplers or dict.fromkeys((own, "unipc")):
        for steps in all_steps:
            started = time.perf_counter()
            generator = Generator(model.parts, make_sampler(name, steps))
            crystals = generator.generate(num_atoms, seed=FLAGS.seed).crystals
            seconds = time.perf_counter() - started
            points += measure(crystals, num_atoms, sampler=name, steps=steps, seconds=seconds)
            logging.info("%s, %d steps: %.1f s", name, steps, seconds)
    return points


if __name__ == "__main__":
    cli.run(main)
