"""Fuzzer of what reads PyTorch files and pickled entries: it may refuse anything, and no more.

It needs atheris, which is no dependency of the tests (its wheels are for Linux)::

    pip install atheris
    python tests/fuzz/fuzz_torch_file.py --target=pickle corpus -max_total_time=300

`--target=file` fuzzes the whole file (archive, directory, checksums), `--target=pickle` the pickle
in a sound archive, `--target=model` the pickle of a small model, which is then converted,
`--target=entries` a pickle of entries or of a phase diagram. The folder `corpus` is made and
seeded; what follows goes to libFuzzer. An exception that is no error of its reader, a minute
without an answer or 1.5 GB of memory stop it, and leave the input in a file `crash-...`,
`timeout-...` or `oom-...`.
"""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import atheris
import numpy as np
from pymatgen.analysis.phase_diagram import PatchedPhaseDiagram, PDEntry
from pymatgen.core import Composition
from pymatgen.entries.computed_entries import ComputedEntry, ConstantEnergyAdjustment

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["chemeleon2_jax", "zipfile"]):
    from chemeleon2_jax.common.errors import CheckpointError, EnergyError
    from chemeleon2_jax.energy.entries import read_entries
    from chemeleon2_jax.torch_format.from_torch import convert_file
    from chemeleon2_jax.torch_format.torch_file import open_torch_file
    from chemeleon2_jax.torch_format.torch_writer import write_torch_file
    from tests.torch_format.walk import visit

from tests.torch_format import original_files
from tests.torch_format.archives import Call, Global, Stored, pack, pickled, tensor

WEIGHTS = {str(i): bytes(1 << 15) for i in range(150)}
STORAGES = {"0": np.arange(12, dtype=np.float32).tobytes(), "1": bytes(6)}
TARGETS = ("--target=file", "--target=pickle", "--target=model", "--target=entries")
_LIMITS = ("-timeout=60", "-rss_limit_mb=1536", "-max_len=65536")


class _Model:
    """Something to pickle whole."""

    def __init__(self) -> None:
        self.num_heads = 4
        self._modules = OrderedDict(inner=[1, (2.5, None)], more={"a": {1, "b"}})


def seeds() -> dict[str, list[bytes]]:
    """Inputs of each target that the reader understands."""
    stored = Stored("torch.FloatStorage", "0", 12)
    hooks = Call("collections.OrderedDict", ())
    view = tensor(stored, (3, 2), (4, 1), offset=1)
    v3 = (Stored("torch.storage.UntypedStorage", "1", 6), 0, (3,), (1,), False, hooks)
    content = {
        "state_dict": {
            "a": view,
            "b": Call("torch._utils._rebuild_parameter", (view, True, hooks)),
            "c": tensor(Stored("torch.BFloat16Storage", "1", 3), (), ()),
            "d": Call("torch._utils._rebuild_tensor_v3", (*v3, Global("torch.uint16"))),
        },
        "hyper_parameters": Call("src.model.DiT", (Call("torch.Size", ((1, 2),)), "x", None)),
    }
    model = {"model": _Model(), "n": [2**70, -1, b"x", frozenset([1]), 1.5, "ü"]}
    pickles = [pickled(content), *(pickle.dumps(model, protocol=p) for p in range(6))]
    models = []
    with tempfile.TemporaryDirectory() as folder:
        for make in original_files.CONTENTS.values():
            path = Path(folder) / "model.ckpt"
            write_torch_file(path, make())
            with zipfile.ZipFile(path) as archive:
                (name,) = (n for n in archive.namelist() if n.endswith("data.pkl"))
                models.append(archive.read(name))
        path = Path(folder) / "a.ckpt"
        files = [pack(path, data, STORAGES).read_bytes() for data in pickles]
        write_torch_file(path, OrderedDict(a=np.zeros((2, 3)), b=[1, "x", None]))
        files.append(path.read_bytes())
    return {"pickle": pickles, "file": files, "model": models, "entries": _entries()}


def _entries() -> list[bytes]:
    entries = [
        ComputedEntry("Li2O", -14.1, energy_adjustments=[ConstantEnergyAdjustment(-0.1)]),
        ComputedEntry("Li", np.float64(-1.9)),
        PDEntry(Composition({"Li+": 2, "O2-": 2}), -16.0),
    ]
    elements = [PDEntry(Composition(symbol), -1.5) for symbol in ("Li", "O")]
    contents = (entries, {"entries": entries[:1]}, PatchedPhaseDiagram(elements))
    return [pickle.dumps(content, p) for content in contents for p in (0, 2, 5)]


def main(arguments: list[str]) -> None:
    """Seed the corpus and fuzz."""
    target = arguments.pop(1).removeprefix("--target=")
    corpus = Path(arguments[1])
    corpus.mkdir(parents=True, exist_ok=True)
    for i, data in enumerate(seeds()[target]):
        (corpus / f"seed_{i}").write_bytes(data)
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    path = Path(tempfile.mkdtemp(dir=base)) / f"fuzzed.{'pkl' if target == 'entries' else 'ckpt'}"

    def one_input(data: bytes) -> None:
        if target in ("file", "entries"):
            path.write_bytes(data)
        else:
            pack(path, data, WEIGHTS if target == "model" else STORAGES)
        try:
            if target == "model":
                convert_file(path)
            elif target == "entries":
                read_entries(path)
            else:
                with open_torch_file(path) as file:
                    visit(file.content)
        except (CheckpointError, EnergyError) as error:
            str(error).encode()

    # Given options come last, and win.
    atheris.Setup([arguments[0], *_LIMITS, *arguments[1:]], one_input)
    try:
        atheris.Fuzz()
    finally:
        path.unlink(missing_ok=True)
        os.rmdir(path.parent)


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in TARGETS:
        sys.exit(f"usage: {sys.argv[0]} {'|'.join(TARGETS)} CORPUS [options of libFuzzer]")
    main(sys.argv)
