"""The sample command: its files, and what it says to flags that are wrong."""

from __future__ import annotations

import contextlib
import json
import shutil
import stat
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
from monty.serialization import loadfn
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

import chemeleon2_jax as c2
from chemeleon2_jax import sample
from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.diffusion.samplers import make_sampler
from chemeleon2_jax.inference import api
from chemeleon2_jax.inference.generator import draw_num_atoms
from chemeleon2_jax.models.condition_kinds import (
    ChemicalSystemCondition,
    CompositionCondition,
    FloatCondition,
)
from tests.tiny import SAMPLE_FLAGS, conditional, make_once, run_module, run_script

FILES = {"vae": "", "ema": False, "size_table": ""}  # options of PyTorch files
FILES |= {"verify": True, "compositions": []}
FILES |= {"coordinator": "", "num_processes": 0, "process_id": -1, "join_timeout": 300}
pytestmark = pytest.mark.usefixtures("quick_compilation")

STRUCTURES, REPORT = "generated_structures.json.gz", "run.json"


def names_of(folder):
    return sorted(path.name for path in folder.iterdir())


def read(folder):
    report = json.loads((folder / REPORT).read_text())
    return loadfn(folder / STRUCTURES), report


def test_structures_are_those_of_the_model_in_order(tiny_samples, tiny_ldm):
    structures, report = read(tiny_samples)
    model = c2.load_model(tiny_ldm.path)
    expected = model.sample(12, seed=5, steps=6)
    assert len(structures) == len(expected) > 6
    for structure, wanted in zip(structures, expected, strict=True):
        assert isinstance(structure, Structure)
        assert structure.species == wanted.species
        np.testing.assert_allclose(structure.frac_coords, wanted.frac_coords, atol=1e-3)
        np.testing.assert_allclose(structure.lattice.matrix, wanted.lattice.matrix, atol=1e-3)
        assert structure.frac_coords.min() >= 0.0
        assert structure.frac_coords.max() < 1.0
    assert report["num_atoms"] == draw_num_atoms(model.parts.size_table, 12, 5).tolist()
    assert [report["num_atoms"][i] for i in report["indices"]] == [len(s) for s in structures]


def test_report(tiny_samples, tiny_ldm):
    structures, report = read(tiny_samples)
    versions, seconds = report.pop("versions"), report.pop("seconds")
    assert set(versions) == {"chemeleon2_jax", "jax", "flax", "pymatgen"}
    assert versions["chemeleon2_jax"] == c2.__version__
    assert seconds > 0
    failed = [failure["index"] for failure in report.pop("failures")]
    assert sorted(report.pop("indices") + failed) == list(range(12))
    assert len(report.pop("num_atoms")) == 12
    assert report == {
        "model": str(tiny_ldm.path),
        "vae": "",
        "ema": False,
        "size_table": "",
        "seed": 5,
        "num_samples": 12,
        "num_built": len(structures),
        "sampler": {"name": "ddim", "steps": 6, "eta": 1.0},
        "conditions": {},
        "cfg_scale": 2.0,
    }


def test_cifs_are_the_structures(tiny_samples):
    structures, report = read(tiny_samples)
    cifs = sorted((tiny_samples / "cif").iterdir())
    assert [path.name for path in cifs] == [
        f"{i:06d}_{s.composition.reduced_formula}.cif"
        for i, s in zip(report["indices"], structures, strict=True)
    ]
    # Symmetric or not, a CIF is read back as the same crystal.
    matcher = StructureMatcher(ltol=1e-3, stol=1e-3, angle_tol=0.01, primitive_cell=False)
    for path, structure in zip(cifs[:4], structures[:4], strict=True):
        again = Structure.from_file(path, site_tolerance=1e-6)
        assert again.composition == structure.composition
        assert matcher.fit(again, structure)


def test_nothing_else_is_written_and_others_may_read_it(tiny_samples):
    assert names_of(tiny_samples) == ["cif", STRUCTURES, "output.txt", REPORT]
    plain = stat.S_IMODE((tiny_samples / "output.txt").stat().st_mode)
    for name in (STRUCTURES, REPORT):
        assert stat.S_IMODE((tiny_samples / name).stat().st_mode) == plain
    _, report = read(tiny_samples)
    expected = f"{report['num_built']} of 12 crystals in"
    assert expected in (tiny_samples / "output.txt").read_text()


# Runs many command lines in one process: most of the time of one is for starting it.
MANY = """
import json, sys
from absl import flags
from chemeleon2_jax import sample
from chemeleon2_jax.common.errors import UserError
names = ("num_atoms", "num_samples", "seed", "sampler", "steps", "eta", "chunk_size", "cif")
names += ("condition", "compositions", "cfg_scale")
results = {}
for name, arguments in json.loads(sys.argv[1]).items():
    for flag in names:
        flags.FLAGS[flag].unparse()
    flags.FLAGS(["sample", *arguments])
    try:
        results[name] = sample.main()
    except UserError as error:
        results[name] = str(error)
print(json.dumps(results))
"""
ERRORS = {
    "missing": ["--model=nothing", "--num_samples=1"],
    "vae": ["--model={vae}", "--num_samples=1"],
    "sizes": ["--num_atoms=3,0"],
    "steps": ["--num_samples=1", "--steps=1001"],
    "eta": ["--num_samples=1", "--eta=nan"],
    "occupied": ["--num_atoms=2", "--steps=2", "--cif"],
    "blocked": ["--num_atoms=2", "--steps=2"],
    "asked": ["--condition=composition=NaCl"],
}
RUNS = {
    "again": list(SAMPLE_FLAGS),
    "ddpm": [
        "--num_atoms=3,7",
        "--num_samples=5",
        "--sampler=ddpm",
        "--steps=50",
        "--chunk_size=2",
    ],
    **ERRORS,
}


@pytest.fixture(scope="session")
def many(tmp_path_factory, tiny_vae, tiny_ldm):
    """A folder with the output folder of every one of RUNS, and results.json."""

    def run(folder):
        (folder / "occupied").mkdir()
        (folder / "occupied" / "cif").write_text("a file")
        (folder / "blocked" / REPORT).mkdir(parents=True)
        arguments = {
            name: [
                f"--model={tiny_ldm.path}",
                f"--output_dir={folder}/{name}",
                *(flag.format(vae=tiny_vae.path) for flag in flags),
            ]
            for name, flags in RUNS.items()
        }
        script = folder / "script.py"
        script.write_text(MANY)
        done = run_script(script, json.dumps(arguments))
        assert done.code == 0, done.output
        (folder / "results.json").write_text(done.output.splitlines()[-1])

    return make_once(tmp_path_factory.getbasetemp(), "many_samples", run)


def test_same_flags_same_bytes(many, tiny_samples):
    again = many / "again"
    assert (again / STRUCTURES).read_bytes() == (tiny_samples / STRUCTURES).read_bytes()
    assert names_of(again / "cif") == names_of(tiny_samples / "cif")


def test_sizes_sampler_and_chunks(many):
    _, report = read(many / "ddpm")
    assert report["num_atoms"] == [3, 7, 3, 7, 3]
    assert report["sampler"] == {"name": "ddpm", "steps": 50, "eta": 1.0}
    assert names_of(many / "ddpm") == [STRUCTURES, REPORT]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "there is no nothing. Give a run folder, a checkpoint folder, a PyTorch"),
        ("vae", "is a VAE, which encodes and decodes but does not generate"),
        ("sizes", "num_atoms must be positive integers"),
        ("steps", "a sampler takes 1 to 1000 steps, not 1001"),
        ("eta", "eta nan at least 0"),
        ("occupied", "occupied/cif cannot be written"),
        ("blocked", "an earlier run cannot be removed: "),
        ("asked", "this model takes no conditions, but is given 'composition'"),
    ],
)
def test_what_cannot_be_done_is_one_line(many, name, message):
    results = json.loads((many / "results.json").read_text())
    assert message in results[name]
    assert "\n" not in results[name]
    assert results.keys() == RUNS.keys()
    assert results["again"] == results["ddpm"] == 0
    # What was written before is whole, and no temporary file is left.
    written = {"occupied": ["cif", STRUCTURES], "blocked": [REPORT]}
    if name in ("missing", "vae", "sizes"):
        assert not (many / name).exists()  # made when there is a model to fill it
    else:
        assert names_of(many / name) == written.get(name, [])


def test_failures_leave_the_others_and_replace_an_earlier_run(tmp_path, tiny_samples, tiny_ldm):
    """latent_std makes the wildest latents infinite; the folder is that of a good run."""
    model = c2.load_model(tiny_ldm.path)
    generator = c2.inference.api.Generator(model.parts, make_sampler(steps=6))
    latents = generator.generate(draw_num_atoms(model.parts.size_table, 12, 5), seed=5).latents
    largest = np.array([np.abs(latent).max() for latent in latents]) / model.parts.latent_std
    ordered = np.sort(largest)
    wild = set(np.flatnonzero(largest > ordered[8]).tolist())
    assert len(wild) == 3
    broken = shutil.copytree(tiny_ldm.path / "checkpoints" / "best", tmp_path / "model")
    meta = json.loads((broken / "meta" / "metadata").read_text())
    meta["latent_std"] = float(c2.inference.api.LARGEST_LATENT / np.sqrt(ordered[8] * ordered[9]))
    (broken / "meta" / "metadata").write_text(json.dumps(meta))

    output = shutil.copytree(tiny_samples, tmp_path / "output")
    (output / "cif" / "mine.cif").write_text("not written by the command")
    done = run_module("sample", f"--model={broken}", f"--output_dir={output}", *SAMPLE_FLAGS)
    assert done.code == 0, done.output
    structures, report = read(output)
    reasons = {failure["index"]: failure["reason"] for failure in report["failures"]}
    assert {i for i, r in reasons.items() if r == "fractional coordinates are not finite"} == wild
    assert report["indices"] == [i for i in range(12) if i not in reasons]
    assert report["num_built"] == len(structures) == 12 - len(reasons)
    assert [len(s) for s in structures] == [report["num_atoms"][i] for i in report["indices"]]
    expected = [
        f"{i:06d}_{s.composition.reduced_formula}.cif"
        for i, s in zip(report["indices"], structures, strict=True)
    ]
    assert names_of(output / "cif") == [*expected, "mine.cif"]
    first = min(reasons)
    assert f"warning: crystal {first} could not be built: {reasons[first]}" in done.output


def put_samples(folder, names):
    (folder / "cif").mkdir(parents=True)
    for name in names:
        (folder / "cif" / name).touch()


def test_what_an_earlier_run_left_is_removed(tmp_path):
    put_samples(tmp_path, ["000001_NaCl.cif", "1000000_Ca(ClO)2.cif", "12_NaCl.cif", "mine.cif"])
    sample._remove_earlier_run(tmp_path)  # no run wrote these
    assert len(names_of(tmp_path / "cif")) == 4
    for name in (STRUCTURES, REPORT):
        (tmp_path / name).touch()
    sample._remove_earlier_run(tmp_path)
    assert names_of(tmp_path) == ["cif"]
    assert names_of(tmp_path / "cif") == ["12_NaCl.cif", "mine.cif"]
    put_samples(tmp_path / "other", ["000001_NaCl.cif"])
    (tmp_path / "other" / STRUCTURES).touch()  # an interrupted run
    sample._remove_earlier_run(tmp_path / "other")
    assert names_of(tmp_path / "other") == []


@dataclass
class Model(api.LDMModel):
    """Builds what it is told to."""

    built: list = field(default_factory=list)

    def sample(self, num_samples, **options):
        failures = (api.Failure(0, "no cell"),) if not self.built else ()
        self.last_report = api.SampleReport(
            0, (2,), (0,) if self.built else (), failures, make_sampler()
        )
        return self.built


def run_here(monkeypatch, folder, built, *, cif):
    monkeypatch.setattr(api, "load_model", lambda _, **options: Model(None, {}, built=built))
    flags = {
        "model": "m",
        "output_dir": str(folder),
        "num_samples": 1,
        "num_atoms": [],
        "cif": cif,
        "picture": 0,
    }
    asked = {"condition": [], "cfg_scale": 2.0}
    rest = {**asked, "seed": 0, "sampler": "ddim", "steps": 2, "eta": 1.0, "chunk_size": 0}
    monkeypatch.setattr(sample.flags, "FLAGS", SimpleNamespace(**FILES, **flags, **rest))
    return sample.main()


def test_nothing_built_is_an_error_with_a_report(tmp_path, monkeypatch):
    folder = tmp_path / "new"
    with pytest.raises(ConfigError, match=r"none of the crystals could be built; .*run\.json"):
        run_here(monkeypatch, folder, [], cif=False)
    structures, report = read(folder)
    assert (structures, report["num_built"]) == ([], 0)
    assert report["failures"] == [{"index": 0, "reason": "no cell"}]


def test_a_run_without_cifs_leaves_none_and_a_failing_one_no_report(tmp_path, monkeypatch):
    salt = Structure(np.eye(3) * 4, ["Na", "Cl"], [[0] * 3, [0.5] * 3])
    assert run_here(monkeypatch, tmp_path, [salt], cif=True) == 0
    assert names_of(tmp_path / "cif") == ["000000_NaCl.cif"]
    assert run_here(monkeypatch, tmp_path, [salt], cif=False) == 0
    assert names_of(tmp_path) == [STRUCTURES, REPORT]
    (tmp_path / "cif").touch()
    with pytest.raises(ConfigError, match="cif cannot be written"):
        run_here(monkeypatch, tmp_path, [salt], cif=True)
    assert names_of(tmp_path) == ["cif", STRUCTURES]


def test_damaged_model_is_one_line(tmp_path, tiny_ldm):
    """Also where the reads of other arrays end after the one that failed."""
    model = shutil.copytree(tiny_ldm.path / "checkpoints" / "best", tmp_path / "model")
    for path in model.glob("ema/ocdbt.process_0/d/*"):
        path.write_bytes(path.read_bytes()[:100])
    output = f"--output_dir={tmp_path / 'output'}"
    done = run_module("sample", f"--model={model}", output, "--num_samples=1")
    assert done.code == 1
    assert done.output.startswith(f"error: item 'ema' of the checkpoint {model} cannot be read")
    assert done.output.count("\n") == 1


def test_a_list_of_elements_is_said_to_be_several_systems(tiny_ldm, caplog):
    model = c2.load_model(tiny_ldm.path)
    system = ChemicalSystemCondition("system")
    model = api.LDMModel(conditional(model.parts, system), model.meta)
    with caplog.at_level("WARNING"):
        values = sample._convert_conditions(model, {"system": ["Na", "Cl"]})
    assert values == {"system": ["Na", "Cl"]}
    assert "2 values, one a crystal" in caplog.text
    assert caplog.text.strip().endswith("asked for by Na-Cl")
    caplog.clear()
    sample._convert_conditions(model, {"system": ["Na-Cl", "K"]})
    assert not caplog.text


def test_conditions_reach_the_model_and_the_report(tmp_path, monkeypatch, tiny_ldm):
    gap, formula = FloatCondition("gap"), CompositionCondition("composition")
    model = c2.load_model(tiny_ldm.path)
    model = api.LDMModel(conditional(model.parts, gap, formula), model.meta)
    monkeypatch.setattr(api, "load_model", lambda _, **options: model)
    flags = {"model": "m", "output_dir": str(tmp_path), "num_samples": 0, "num_atoms": []}
    asked = {"condition": ["gap=1.5", "composition=NaCl,none,InF"], "cfg_scale": 3.0}
    rest = {
        "cif": False,
        "picture": 0,
        "seed": 2,
        "sampler": "ddim",
        "steps": 2,
        "eta": 1.0,
        "chunk_size": 0,
    }
    monkeypatch.setattr(sample.flags, "FLAGS", SimpleNamespace(**FILES, **flags, **asked, **rest))
    written = []
    monkeypatch.setattr(sample, "_write", lambda *arguments: written.append(arguments))
    with contextlib.suppress(ConfigError):  # where none of the three can be built
        sample.main()
    assert len(written) == 1
    report = model.last_report
    expected = {"gap": 1.5, "composition": ["NaCl", None, "InF"]}
    assert (report.conditions, report.cfg_scale) == (expected, 3.0)
    assert report.num_atoms[::2] == (2, 2)
    summary = sample._summary(report, 0, 1.0)
    assert json.loads(json.dumps(summary["conditions"])) == expected
    assert summary["cfg_scale"] == 3.0
    asked["condition"] = ["gap=wide"]
    monkeypatch.setattr(sample.flags, "FLAGS", SimpleNamespace(**FILES, **flags, **asked, **rest))
    with pytest.raises(
        ConfigError, match="--condition: condition 'gap' takes a number, not 'wide'"
    ):
        sample.main()


GOOD = ("--model=m", "--output_dir={folder}", "--num_samples=1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (GOOD[1:], "give --model"),
        ((*GOOD, "--condition=NaCl"), "--condition is 'NaCl'; give name=value, as in"),
        ((*GOOD, "--condition=gap=1", "--condition=gap=2"), "--condition=gap=... is given twice"),
        ((*GOOD, "--cfg_scale=strong"), "flag --cfg_scale=strong"),
        (GOOD[::2], "give --output_dir"),
        (GOOD[:2], "give --num_samples, --num_atoms or both"),
        ((*GOOD, "--num_atoms=8,twelve"), "--num_atoms is '8,twelve'; give integers"),
        ((*GOOD, "--num_atoms=8,30000"), "--num_atoms: 30000 atoms in a crystal are too many"),
        ((*GOOD[:2], "--num_samples=1000000000"), "--num_samples: 1000000000 crystals at once"),
        ((*GOOD, "--num_samples=-3"), "flag --num_samples=-3"),
        ((*GOOD, "--num_samples=many"), "flag --num_samples=many"),
        ((*GOOD, "--sampler=rk4"), "flag --sampler=rk4"),
        ((*GOOD, "--steps=0"), "flag --steps=0"),
        ((*GOOD, "--eta=-1"), "flag --eta=-1"),
        ((*GOOD, "--seed=4294967296"), "flag --seed=4294967296"),
        ((*GOOD, "--sed=1"), "Unknown command line flag 'sed'. Did you mean: seed"),
        ((*GOOD, "more"), "unexpected argument 'more'"),
        ((*GOOD[::2], "--output_dir={folder}/file/new"), "--output_dir: "),
    ],
)
def test_wrong_flag_is_one_line_and_exit_code_1(tmp_path, arguments, message):
    (tmp_path / "file").touch()
    done = run_module("sample", *(text.format(folder=tmp_path) for text in arguments))
    assert done.code == 1
    assert done.output.startswith(f"error: {message}"), done.output
    assert done.output.count("\n") == 1
    assert names_of(tmp_path) == ["file"]


def test_compositions_are_repeated_and_hits_are_counted(tmp_path, monkeypatch, tiny_ldm, caplog):
    caplog.set_level("INFO")
    model = c2.load_model(tiny_ldm.path)
    model = api.LDMModel(conditional(model.parts, CompositionCondition("formula")), model.meta)
    monkeypatch.setattr(api, "load_model", lambda _, **options: model)
    flags = {"model": "m", "output_dir": str(tmp_path), "num_samples": 2, "num_atoms": []}
    files = FILES | {"compositions": ["NaCl", "SrTiO3"], "condition": [], "cfg_scale": 2.0}
    rest = {
        "cif": False,
        "picture": 0,
        "seed": 2,
        "sampler": "ddim",
        "steps": 2,
        "eta": 1.0,
        "chunk_size": 0,
    }
    monkeypatch.setattr(sample.flags, "FLAGS", SimpleNamespace(**files, **flags, **rest))
    with contextlib.suppress(ConfigError):  # where none can be built
        sample.main()
    assert model.last_report.conditions == {"formula": ["NaCl", "NaCl", "SrTiO3", "SrTiO3"]}
    assert model.last_report.num_atoms == (2, 2, 5, 5)
    hits = json.loads((tmp_path / REPORT).read_text())["hits"]["formula"]
    assert hits["asked"] == 4
    assert f"{hits['hits']} of 4 crystals have the formula asked for" in caplog.text
    assert ("predicts the atom types" in caplog.text) == (hits["hits"] < 4)
    both = SimpleNamespace(**(files | {"condition": ["formula=NaCl"]}), **flags, **rest)
    monkeypatch.setattr(sample.flags, "FLAGS", both)
    with pytest.raises(ConfigError, match="not both"):
        sample.main()


def test_names_of_the_original_are_said(tmp_path, tiny_ldm):
    done = run_module(
        "sample",
        f"--ldm_ckpt_path={tiny_ldm.path}",
        *("--batch_size", "2", "--sampling_steps=2", "--compositions=NaCl"),
        f"--output_dir={tmp_path / 'output'}",
    )
    assert done.output.startswith(
        f"--ldm_ckpt_path is --model={tiny_ldm.path} here\n--batch_size is --chunk_size=2 here\n"
        "--sampling_steps is --steps=2 here\n"
    )
    assert done.output.endswith("trained with it (mp_20/ldm_composition), or leave the flag away\n")
    assert done.code == 1
