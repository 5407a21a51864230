"""The evaluate command: its files, its errors for wrong flags, and its name."""

import json
import stat

import pandas as pd
import pytest

from tests.data.test_structure_files import write_samples
from tests.tiny import caesium_chloride, make_once, rocksalt, run_module, run_script

TABLE, SUMMARY = "metrics.csv", "summary.json"
SALT, OTHER_SALT = rocksalt("Na", "Cl", 5.64), caesium_chloride("Na", "Cl", 3.4)


def names_of(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory, tiny_data):
    """A folder with samples/, eval/ and output.txt."""

    def run(folder):
        write_samples(folder / "samples", [SALT, OTHER_SALT, SALT], {1: "no cell: too flat"})
        (folder / "eval").mkdir()
        (folder / "eval" / SUMMARY).write_text("of an earlier run")
        done = run_module(
            "evaluate",
            f"--structures={folder / 'samples'}",
            f"--reference={tiny_data}",
            "--reference_splits=train,val",
            f"--output_dir={folder / 'eval'}",
            "--num_workers=1",
        )
        (folder / "output.txt").write_text(done.output)
        assert done.code == 0, done.output

    return make_once(tmp_path_factory.getbasetemp(), "evaluated", run)


def test_table(evaluated):
    table = pd.read_csv(evaluated / "eval" / TABLE, index_col="index")
    assert table["status"].tolist() == ["ok", "not built", "ok", "ok"]
    assert table["formula"].fillna("").tolist() == ["NaCl", "", "NaCl", "NaCl"]
    assert table["unique"].tolist()[::2] == [True, True]
    assert table["unique"].tolist()[3] is False
    assert table["unique"].isna().tolist() == [False, True, False, False]
    # The training set has rock salt.
    assert table["novel"].dropna().tolist() == [False, True, False]
    known = "novel, unique_novel, valid_unique_novel: same as reference: train-5"
    assert table["reason"][0] == known
    assert table["reason"][1] == "no cell: too flat"
    assert "unique: same as structure 0; novel" in table["reason"][3]
    assert table["density"][0] == pytest.approx(float(SALT.density), rel=1e-6)


def test_summary(evaluated, tiny_data):
    summary = json.loads((evaluated / "eval" / SUMMARY).read_text())
    assert summary["structures"]["source"] == str(evaluated / "samples")
    assert (summary["structures"]["asked"], summary["structures"]["built"]) == (4, 3)
    assert summary["structures"]["without_crystal"] == {"no cell": 1}
    assert summary["metrics"]["unique"]["share"] == 0.5
    assert summary["metrics"]["unique_novel"]["passed"] == 1
    assert summary["set"]["wasserstein_num_elements"]["count"] == 3
    assert summary["reference"]["name"] == str(tiny_data)
    assert summary["reference"]["splits"] == ["train", "val"]
    assert summary["reference"]["skipped"] == 1


def test_output(evaluated):
    output = (evaluated / "output.txt").read_text()
    for text in (
        *("samples: 4 crystals", "75.0% (3)", "1 x no cell", "50.0% [", "g/cm3"),
        "wasserstein_density",
    ):
        assert text in output
    for name in (TABLE, SUMMARY):
        assert str(evaluated / "eval" / name) in output
    assert "skipped 1" in output  # a row of the reference


def test_nothing_else_is_written_and_others_may_read_it(evaluated):
    assert names_of(evaluated / "eval") == [TABLE, SUMMARY]
    plain = stat.S_IMODE((evaluated / "output.txt").stat().st_mode)
    for name in (TABLE, SUMMARY):
        assert stat.S_IMODE((evaluated / "eval" / name).stat().st_mode) == plain


# Runs many command lines in one process: most of the time of one is for starting it.
MANY = """
import json, sys
from absl import flags
from chemeleon2_jax.common.errors import UserError
from chemeleon2_jax.evaluate import main
from chemeleon2_jax.workers import pool
pool.default_workers = lambda: 0  # a process takes longer to start than to do its work
names = list(flags.FLAGS.flags_by_module_dict()["chemeleon2_jax.evaluate"])
found = {}
for name, arguments in json.loads(sys.argv[1]).items():
    for flag in names:
        flag.unparse()
    try:
        flags.FLAGS(["evaluate", *arguments])
        found[name] = main()
    except (UserError, flags.Error) as error:
        found[name] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""
RUNS = {
    "cifs": (["--structures={folder}/cifs", "--metrics=valid,density"], 0),
    "no_structures": ([], "ConfigError: give --structures; see python -m"),
    "no_output": (
        ["--structures={folder}/cifs", "--output_dir="],
        "ConfigError: give --output_dir",
    ),
    "missing": (["--structures={folder}/gone"], "DatasetError: there is no file or folder"),
    "empty": (["--structures={folder}/empty"], "DatasetError: {folder}/empty has neither"),
    "metric": (
        ["--structures={folder}/cifs", "--metrics=valid,densty"],
        "ConfigError: --metrics: no metric 'densty': did you mean 'density'",
    ),
    "needs": (
        ["--structures={folder}/cifs", "--metrics=novel"],
        "ConfigError: --metrics: metric 'novel' needs a reference",
    ),
    "features": (
        ["--structures={folder}/cifs", "--reference=prototypes", "--metrics=structure_mmd"],
        "ConfigError: --metrics: metric 'structure_mmd' needs a VAE that gives features",
    ),
    "reference": (
        ["--structures={folder}/cifs", "--reference=mp-21"],
        "DatasetError: no data set, file or folder 'mp-21': did you mean 'mp-20'",
    ),
    "splits": (
        ["--structures={folder}/cifs", "--reference=prototypes", "--reference_splits=trian"],
        "DatasetError: no split 'trian': did you mean 'train'",
    ),
    "timeout": (["--timeout_s=0"], "IllegalFlagValueError: flag --timeout_s=0"),
    "workers": (["--num_workers=-1"], "IllegalFlagValueError: flag --num_workers=-1"),
    "file": (
        ["--structures={folder}/cifs", "--output_dir={folder}/cifs/a.cif/new"],
        "ConfigError: --output_dir: ",
    ),
    "blocked": (
        ["--structures={folder}/cifs", "--metrics=valid"],
        "ConfigError: an earlier summary cannot be removed: ",
    ),
    "occupied": (
        ["--structures={folder}/cifs", "--metrics=valid"],
        "ConfigError: {folder}/occupied/metrics.csv cannot be written: ",
    ),
}


@pytest.fixture(scope="session")
def many(tmp_path_factory):
    """A folder with the output folders of RUNS, and results.json."""

    def run(folder):
        for name in ("cifs", "empty", "blocked", "occupied"):
            (folder / name).mkdir()
        SALT.to(filename=str(folder / "cifs" / "a.cif"))
        (folder / "cifs" / "b.cif").write_text("data_broken\n_cell_length_a what\n")
        (folder / "blocked" / SUMMARY).mkdir()
        (folder / "occupied" / TABLE).mkdir()
        given = {
            name: [
                f"--output_dir={folder}/{name}",
                *(argument.format(folder=folder) for argument in arguments),
            ]
            for name, (arguments, _) in RUNS.items()
        }
        script = folder / "script.py"
        script.write_text(MANY)
        done = run_script(script, json.dumps(given))
        assert done.code == 0, done.output
        (folder / "results.json").write_text(done.output.splitlines()[-1])

    return make_once(tmp_path_factory.getbasetemp(), "many_evaluations", run)


@pytest.mark.parametrize("name", [name for name in RUNS if name != "cifs"])
def test_an_error_is_one_line(many, name):
    result = json.loads((many / "results.json").read_text())[name]
    assert result.startswith(RUNS[name][1].format(folder=many))
    assert "\n" not in result
    left = {"blocked": [SUMMARY], "occupied": [TABLE], "empty": []}
    if name in left:  # no temporary file
        assert names_of(many / name) == left[name]
    else:
        assert not (many / name).exists()


def test_an_unreadable_cif_costs_itself(many):
    assert json.loads((many / "results.json").read_text())["cifs"] == 0
    table = pd.read_csv(many / "cifs" / TABLE)
    assert table["name"].tolist() == ["a.cif", "b.cif"]
    assert table["status"].tolist() == ["ok", "failed"]
    assert table["reason"][1].startswith("unparsable CIF: ")
    summary = json.loads((many / "cifs" / SUMMARY).read_text())
    assert summary["metrics"]["valid"]["share"] == 0.5
    assert summary["reference"] is None


def test_an_error_ends_the_command_with_exit_code_1(tmp_path):
    done = run_module("evaluate", f"--structures={tmp_path}", f"--output_dir={tmp_path}/eval")
    assert done.code == 1
    assert done.output.startswith(f"error: {tmp_path} has neither")
    assert done.output.count("\n") == 1
    assert names_of(tmp_path) == []


# Every order in a process of its own, forked when what takes seconds to import is there.
FORKS = """
import importlib, inspect, json, os, sys
import absl.flags, pandas, pymatgen.analysis.structure_matcher

CHECK = '''
assert inspect.isfunction(c2.evaluate), c2.evaluate
assert inspect.isfunction(evaluate) and evaluate is c2.evaluate
module = importlib.import_module("chemeleon2_jax.evaluate")
assert inspect.ismodule(module) and callable(module.main)
assert sys.modules["chemeleon2_jax.evaluate"] is module
assert c2.evaluate is evaluate
import chemeleon2_jax.runs.command_line
assert inspect.ismodule(c2.runs.command_line)
'''
failed = []
for name, lines in json.loads(sys.argv[1]).items():
    assert not [module for module in sys.modules if module.startswith("chemeleon2_jax")]
    child = os.fork()
    if not child:
        exec("\\n".join([*lines, CHECK]), {**globals()})
        sys.stdout.flush()
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        failed.append(name)
print(json.dumps(failed))
"""
ORDERS = {
    "module first": [
        "import chemeleon2_jax.evaluate",
        "import chemeleon2_jax as c2",
        "from chemeleon2_jax import evaluate",
    ],
    "function first": [
        "from chemeleon2_jax import evaluate",
        "import chemeleon2_jax.evaluate",
        "import chemeleon2_jax as c2",
    ],
    "between": [
        "import chemeleon2_jax as c2",
        "function = c2.evaluate",
        "import chemeleon2_jax.evaluate, chemeleon2_jax.metrics.report",
        "from chemeleon2_jax import evaluate",
        "assert evaluate is function",
    ],
    "by name": [
        "importlib.import_module('chemeleon2_jax.evaluate')",
        "import chemeleon2_jax.evaluate as evaluate",
        "import chemeleon2_jax as c2",
    ],
}


def test_the_function_keeps_its_name(tmp_path):
    """In any order of imports."""
    script = tmp_path / "script.py"
    script.write_text(FORKS)
    done = run_script(script, json.dumps(ORDERS))
    assert (done.code, done.output) == (0, "[]\n"), done.output
