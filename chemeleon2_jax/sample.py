r"""Generate crystals.

    python -m chemeleon2_jax.sample --model=mp_20_ldm_rl --num_samples=100 \
        --output_dir=outputs/first
    python -m chemeleon2_jax.sample --model=logs/train_ldm/runs/<run> --num_atoms=8,12 \
        --num_samples=20 --seed=1 --sampler=ddpm --steps=200 --output_dir=outputs/sizes --cif
    python -m chemeleon2_jax.sample --model=logs/train_ldm/runs/<run> --num_samples=50 \
        --condition=composition=Ba1Cr1F6 --condition=dft_band_gap=1.5 --output_dir=outputs/BaCrF6

Writes generated_structures.json.gz (a list of pymatgen Structures in the order of their index),
with --cif one CIF each, and last run.json (options, and index and reason of each crystal that could
not be built). Files of an earlier run in the same folder are removed. The exit code is 1 if no
crystal could be built.
"""

from __future__ import annotations

import gzip
import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags, logging
from tqdm import tqdm

from chemeleon2_jax.common import hosts
from chemeleon2_jax.common.atomic_files import REPORT_FILE, STRUCTURES_FILE, replacing
from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.common.paths import expand_path
from chemeleon2_jax.common.version import __version__
from chemeleon2_jax.crystals.limits import check_num_atoms, check_num_samples
from chemeleon2_jax.diffusion.samplers import SAMPLERS
from chemeleon2_jax.runs import command_line as cli
from chemeleon2_jax.runs.joining import joined
from chemeleon2_jax.runs.original_names import SAMPLE_FLAGS

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from chemeleon2_jax.inference.api import LDMModel, SampleReport

CIF_FOLDER = "cif"
PICTURE_FILE = "crystals.png"
_CIF_NAME = re.compile(r"[0-9]{6,}_.+\.cif")


flags.DEFINE_string(
    "model",
    "",
    "A run folder (its best checkpoint), a checkpoint folder, a PyTorch .ckpt file or the key of a "
    "published checkpoint (mp_20_ldm_rl).",
)
flags.DEFINE_string("vae", "", "The VAE for a .ckpt without one, or without its number of heads.")
flags.DEFINE_bool("ema", False, "Take the moving averages of a .ckpt, not its raw weights.")
flags.DEFINE_string("size_table", "", "Table of crystal sizes for a .ckpt: mp-20 or mp-120.")
flags.DEFINE_integer("num_samples", 0, "Crystals to generate.", lower_bound=0)
flags.DEFINE_list(
    "num_atoms", [], "Atoms in a crystal, repeated in turn; default: as in the training set."
)
flags.DEFINE_integer(
    "seed", 0, "The same seed gives the same crystals.", lower_bound=0, upper_bound=2**32 - 1
)
flags.DEFINE_multi_string(
    "condition",
    [],
    "A condition of the model, as name=value, or comma-separated values, one a crystal (Na-Cl is "
    "one chemical system, Na,Cl are two); 'none' is the null condition. May be repeated, once for "
    "each condition.",
)
flags.DEFINE_list(
    "compositions", [], "Formulas; --num_samples crystals of each, for a model with a composition."
)
flags.DEFINE_float(
    "cfg_scale", 2.0, "Strength of the guidance towards the conditions; 1 is no guidance."
)
flags.DEFINE_enum(
    "sampler", None, SAMPLERS, "Sampler; default: euler for flow models, ddim for others."
)
flags.DEFINE_integer("steps", 50, "Steps of the sampler.", lower_bound=1)
flags.DEFINE_float(
    "eta",
    None,
    "Share of the noise, for samplers with this option; 0 is deterministic; default: 1 for ddim, 0 "
    "for others.",
    lower_bound=0.0,
)
flags.DEFINE_integer("chunk_size", 0, "Crystals at once; 0 chooses by memory.", lower_bound=0)
flags.DEFINE_bool("verify", True, "Compare the arrays of checkpoints with their checksums.")
flags.DEFINE_string("output_dir", "", "Folder to write to.")
flags.DEFINE_bool("cif", False, "Also write a CIF for each crystal.")
flags.DEFINE_integer(
    "picture",
    0,
    f"Also draw this many of the crystals, with their index, into {PICTURE_FILE}.",
    lower_bound=0,
    upper_bound=64,
)


def main() -> int:
    """Sample as the flags say."""
    values = flags.FLAGS
    for name in ("model", "output_dir"):
        if not getattr(values, name):
            raise ConfigError(f"give --{name}; see python -m chemeleon2_jax.sample --help")
    num_atoms = _read_sizes(values.num_atoms)
    condition_texts = _read_conditions(values.condition)
    if not values.num_samples and not num_atoms and not condition_texts and not values.compositions:
        raise ConfigError("give --num_samples, --num_atoms or both")
    with joined():
        return _run(expand_path(values.output_dir), num_atoms, condition_texts)


def _run(output_dir: Path, num_atoms: list[int], condition_texts: dict[str, list[str]]) -> int:
    """Sample; several processes divide the crystals, and the first one writes them."""
    values = flags.FLAGS
    if hosts.is_first():
        cli.check_output_dir(output_dir)
    # After the checks of the flags: importing JAX and pymatgen takes seconds.
    from chemeleon2_jax.inference.api import LDMModel, VAEModel, load_model
    from chemeleon2_jax.training.compilation import enable_compilation_cache

    enable_compilation_cache()
    model = load_model(
        values.model,
        vae=values.vae,
        ema=values.ema,
        size_table=values.size_table,
        verify=values.verify,
    )
    if not isinstance(model, LDMModel):
        kind = "VAE, which encodes and decodes"
        if not isinstance(model, VAEModel):
            kind = "predictor, which reads structures"
        raise ConfigError(
            f"{values.model} is a {kind} but does not generate; give a latent diffusion model's "
            "run folder (logs/train_ldm/runs/...)"
        )
    conditions = _convert_conditions(model, condition_texts)
    num_samples = values.num_samples
    if values.compositions:
        conditions |= _repeat_compositions(model, conditions)
        num_samples = len(values.compositions) * (values.num_samples or 1)
    warning = model.untrained_request(conditions) if conditions else ""
    if warning:
        logging.warning("%s", warning)
    if hosts.is_first():
        cli.make_output_dir(output_dir)
    start = time.perf_counter()
    own = _sample(model, num_samples, num_atoms=num_atoms, conditions=conditions)
    structures = _collect(model, own)
    if not hosts.is_first():
        return 0
    _write(output_dir, model, structures, time.perf_counter() - start)
    if not structures:
        raise ConfigError(
            f"none of the crystals could be built; {output_dir / REPORT_FILE} says why"
        )
    return 0


def _read_sizes(texts: list[str]) -> list[int]:
    try:
        sizes = [int(text) for text in texts]
    except ValueError:
        raise ConfigError(
            f"--num_atoms is {','.join(texts)[:200]!r}; give integers, as in 8,12"
        ) from None
    if sizes and min(sizes) < 1:
        raise ConfigError(
            f"--num_atoms is {','.join(texts)[:200]}; num_atoms must be positive integers"
        )
    _check_request(sizes)
    return sizes


def _check_request(sizes: list[int]) -> None:
    """Check the limits before anything heavy is imported."""
    try:
        for size in sizes:
            check_num_atoms(size)
    except ValueError as error:
        raise ConfigError(f"--num_atoms: {error}") from error
    try:
        if flags.FLAGS.num_samples:
            check_num_samples(flags.FLAGS.num_samples)
    except ValueError as error:
        raise ConfigError(f"--num_samples: {error}") from error


def _read_conditions(texts: list[str]) -> dict[str, list[str]]:
    """Return name -> values of the conditions, as text."""
    values: dict[str, list[str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise ConfigError(
                f"--condition is {text!r}; give name=value, as in --condition=composition=Ba1Cr1F6"
            )
        if name in values:
            raise ConfigError(
                f"--condition={name}=... is given twice; put commas between several values"
            )
        values[name] = value.split(",")
    return values


def _convert_conditions(model: LDMModel, condition_texts: dict[str, list[str]]) -> dict[str, Any]:
    from pymatgen.core import Element  # loaded with the model

    known = {c.name: c for c in model.conditions} if condition_texts else {}
    converted: dict[str, Any] = {}
    for name, texts in condition_texts.items():
        try:
            # `LDMModel.sample` raises on an unknown name, with the known ones.
            values = [known[name].read(t) if name in known else t for t in texts]
        except ValueError as error:
            raise ConfigError(f"--condition: {error}") from error
        if len(texts) > 1 and all(Element.is_valid_symbol(text.strip()) for text in texts):
            logging.warning(
                "--condition=%s=%s: %d values, one a crystal; crystals of all these elements are "
                "asked for by %s",
                *(name, ",".join(texts), len(texts), "-".join(texts)),
            )
        converted[name] = values[0] if len(values) == 1 else values
        if len(values) > 1:
            logging.info("--condition=%s: %d values, one a crystal", name, len(values))
    return converted


def _repeat_compositions(model: LDMModel, conditions: dict[str, Any]) -> dict[str, list[Any]]:
    """Return the model's composition condition with the values of --compositions, each repeated."""
    name, times = model.composition, flags.FLAGS.num_samples or 1
    if name is None:
        raise ConfigError(
            "--compositions: the model takes no composition; give one that was trained with it "
            "(mp_20/ldm_composition), or leave the flag away"
        )
    if name in conditions:
        raise ConfigError(f"give --compositions or --condition={name}=..., not both")
    return {name: [formula for formula in flags.FLAGS.compositions for _ in range(times)]}


def _sample(
    model: LDMModel, num_samples: int, *, num_atoms: list[int], conditions: dict[str, Any]
) -> list[Structure]:
    values = flags.FLAGS
    total = num_samples or len(num_atoms)
    with tqdm(
        desc="sampling",
        total=total // hosts.count() or None,
        unit="crystal",
        disable=None if hosts.is_first() else True,
        dynamic_ncols=True,
    ) as bar:
        try:
            return model.sample(
                num_samples or None,
                seed=values.seed,
                num_atoms=num_atoms or None,
                conditions=conditions,
                cfg_scale=values.cfg_scale,
                sampler=values.sampler or "",
                steps=values.steps,
                eta=values.eta,
                chunk_size=values.chunk_size,
                on_done=bar.update,
                part=(hosts.index(), hosts.count()),
            )
        except ValueError as error:
            raise ConfigError(str(error)) from error


def _collect(model: LDMModel, structures: list[Structure]) -> list[Structure]:
    """Return the structures of all processes in the order of their index, and give the model the
    report of all, in the first process.
    """
    parts = hosts.gather_to_first((structures, model.last_report))
    reports = [report for _, report in parts if report is not None]
    if len(parts) < 2:
        return structures
    from chemeleon2_jax.inference.requests import sum_hits

    model.last_report = replace(
        reports[0],
        indices=tuple(index for report in reports for index in report.indices),
        failures=tuple(failure for report in reports for failure in report.failures),
        hits=sum_hits(report.hits for report in reports),
    )
    return [structure for own, _ in parts for structure in own]


def _write(output_dir: Path, model: LDMModel, structures: list[Structure], seconds: float) -> None:
    report = model.last_report
    assert report is not None
    _remove_earlier_run(output_dir)
    # The structures first: without them CIFs count as a user's own. The report last.
    dicts = [structure.as_dict() for structure in structures]
    cli.write_file(output_dir / STRUCTURES_FILE, gzip.compress(json.dumps(dicts).encode(), mtime=0))
    if flags.FLAGS.cif:
        _write_cifs(output_dir / CIF_FOLDER, report.indices, structures)
    if flags.FLAGS.picture and structures:
        _draw(output_dir / PICTURE_FILE, report.indices, structures)
    summary = _summary(report, len(structures), seconds)
    cli.write_file(output_dir / REPORT_FILE, json.dumps(summary, indent=2).encode())
    logging.info(
        "%d of %d crystals in %.1f s -> %s",
        *(len(structures), len(report.num_atoms), seconds, output_dir / STRUCTURES_FILE),
    )
    _log_hits(model, report)
    for failure in report.failures[:5]:
        logging.warning("crystal %d could not be built: %s", failure.index, failure.reason)
    if len(report.failures) > 5:
        logging.warning(
            "and %d more; all are in %s", len(report.failures) - 5, output_dir / REPORT_FILE
        )


def _log_hits(model: LDMModel, report: SampleReport) -> None:
    """Say how many crystals have what they were asked for."""
    for name, hits in report.hits.items():
        logging.info("%d of %d crystals have the %s asked for", hits.hits, hits.asked, name)
    missed = any(hits.hits < hits.asked for hits in report.hits.values())
    if missed and model.parts.vae.sizes.atom_type_predict:
        logging.info(
            "This model predicts the atom types, which a condition only guides. A composition is "
            "kept by models on a VAE with atom types as input (configs/train_vae.py:mp_20/vae_csp, "
            "then configs/train_ldm.py:mp_20/ldm_composition)"
        )


def _summary(report: SampleReport, num_built: int, seconds: float) -> dict[str, Any]:
    return {
        "model": flags.FLAGS.model,
        "vae": flags.FLAGS.vae,
        "ema": flags.FLAGS.ema,
        "size_table": flags.FLAGS.size_table,
        "seed": report.seed,
        "num_samples": len(report.num_atoms),
        "num_built": num_built,
        "failures": [{"index": f.index, "reason": f.reason} for f in report.failures],
        "indices": list(report.indices),
        "num_atoms": list(report.num_atoms),
        "sampler": {
            "name": report.sampler.name,
            "steps": report.sampler.steps,
            "eta": report.sampler.eta,
        },
        "conditions": report.conditions,
        "cfg_scale": report.cfg_scale,
        **({"hits": {n: asdict(h) for n, h in report.hits.items()}} if report.hits else {}),
        "seconds": round(seconds, 3),
        "versions": {
            "chemeleon2_jax": __version__,
            **{name: metadata.version(name) for name in ("jax", "flax", "pymatgen")},
        },
    }


def _remove_earlier_run(output_dir: Path) -> None:
    """Remove an earlier run's files: its report first, so that it never stands beside files of
    another run, and its structures last, so that after an interruption its CIFs are still known.
    """
    report, structures = output_dir / REPORT_FILE, output_dir / STRUCTURES_FILE
    if not (report.exists() or structures.exists()):
        return  # CIFs in the folder are a user's own
    folder = output_dir / CIF_FOLDER
    try:
        report.unlink(missing_ok=True)
        (output_dir / PICTURE_FILE).unlink(missing_ok=True)
        if folder.is_dir():
            for path in folder.iterdir():
                if _CIF_NAME.fullmatch(path.name):
                    path.unlink()
            if not any(folder.iterdir()):
                folder.rmdir()
        structures.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"an earlier run cannot be removed: {error}") from error


def _draw(path: Path, indices: Sequence[int], structures: Sequence[Structure]) -> None:
    from chemeleon2_jax.crystals.visualize import save_grid  # matplotlib takes a second

    count = min(flags.FLAGS.picture, len(structures))
    titles = [f"crystal {index}" for index in indices[:count]]
    try:
        with replacing(path) as temporary:
            save_grid(structures[:count], temporary, titles=titles)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from error
    logging.info("Picture of %d crystals -> %s", count, path)


def _write_cifs(folder: Path, indices: Sequence[int], structures: Sequence[Structure]) -> None:
    try:
        folder.mkdir(exist_ok=True)
        for index, structure in zip(indices, structures, strict=True):
            formula = structure.composition.reduced_formula
            text = structure.to(fmt="cif").encode()
            cli.write_file(folder / f"{index:06d}_{formula}.cif", text)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}") from error


if __name__ == "__main__":
    cli.run(main, aliases=SAMPLE_FLAGS)
