"""Fuzzer of the parsers of flags: they may refuse anything with a sentence, and no more.

It needs atheris, which is no dependency of the tests (its wheels are for Linux)::

    pip install atheris
    python tests/fuzz/fuzz_flags.py corpus -max_total_time=300

The folder `corpus` is made and seeded; what follows goes to libFuzzer. An exception other than a
`UserError` (or the ValueError of a value), ten seconds without an answer or 1.5 GB of memory stop
it, and leave the input in a file `crash-...`, `timeout-...` or `oom-...`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

with atheris.instrument_imports(include=["chemeleon2_jax"]):
    from chemeleon2_jax import sample
    from chemeleon2_jax.common.errors import UserError
    from chemeleon2_jax.common.json_text import parse_json
    from chemeleon2_jax.common.paths import expand_path, printable
    from chemeleon2_jax.crystals.formulas import read_chemical_system, read_composition
    from chemeleon2_jax.rewards.symmetry import parse_space_groups
    from chemeleon2_jax.runs.config import expand_value, load_config, rename_columns, split_names
    from chemeleon2_jax.runs.config_checks import check_overrides

CONFIG = load_config(str(ROOT / "configs" / "train_rl.py"))
SEEDS = (
    "trainer.max_steps=10",
    "nodata.batch_size=-1",
    "rl_module.reward_fn.custom.kwargs={}",
    "cif:structure,id:material_id",
    "dft_band_gap=1.5,none",
    "8,12",
    "Ba1Cr1F6",
    "Ba-Cr-F",
    "195-230,5",
    "~/x/$HOME/${hub:mp_20_vae}",
    "gs://bucket/[/x]",
    '{"a": [[[1e999, "\\\\"]]]}',
    "[" * 200,
)


def parse_all(text: str) -> None:
    """Let every parser of a flag read a text."""
    for parse in (
        lambda: check_overrides(CONFIG, [f"--config.{text}", f"--config.trainer.max_steps={text}"]),
        lambda: rename_columns(text),
        lambda: split_names(text),
        lambda: expand_value("data.data_dir", text),
        lambda: expand_path(text),
        lambda: printable(text).encode(),
        lambda: sample._read_conditions(text.split(";")),
        lambda: parse_json(text),
        lambda: read_composition(text),
        lambda: read_chemical_system(text),
        lambda: parse_space_groups(text),
    ):
        try:
            parse()
        except (UserError, ValueError) as error:
            str(error).encode("utf-8", "backslashreplace")


def main(arguments: list[str]) -> None:
    """Seed the corpus and fuzz."""
    corpus = Path(arguments[1])
    corpus.mkdir(parents=True, exist_ok=True)
    for index, text in enumerate(SEEDS):
        (corpus / f"seed_{index}").write_bytes(text.encode())

    def one_input(data: bytes) -> None:
        parse_all(data.decode("utf-8", "surrogateescape"))

    options = ["-timeout=10", "-rss_limit_mb=1536", "-max_len=512"]
    atheris.Setup([arguments[0], *options, *arguments[1:]], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} CORPUS [options of libFuzzer]")
    main(sys.argv)
