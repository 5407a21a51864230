"""The table and the summary: every crystal that was asked for has a row and counts."""

import json
import math

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

import chemeleon2_jax as c2
from chemeleon2_jax.common.errors import DatasetError
from chemeleon2_jax.metrics import crystal_metrics, matching, registry, summary
from chemeleon2_jax.metrics import report as module
from chemeleon2_jax.metrics.matching import Tolerances
from chemeleon2_jax.metrics.metric import Column, CrystalMetric, SetMetric, SetScore, Subject
from chemeleon2_jax.metrics.registry import FEATURES, METRICS, choose_metrics
from chemeleon2_jax.metrics.report import Report, evaluate
from chemeleon2_jax.metrics.structure import covalent_check
from chemeleon2_jax.workers import WorkerPool
from tests.tiny import caesium_chloride, perovskite, rocksalt, write_split

SALT, OXIDE = rocksalt("Na", "Cl", 5.64), perovskite("Sr", "Ti", 3.905)
OTHER_SALT = caesium_chloride("Na", "Cl", 3.4)
UNBALANCED = perovskite("Na", "Li", 3.9)
DISORDERED = Structure(Lattice.cubic(4.0), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])
FLAT = Structure(np.diag([4.0, 4.0, 0.0]), ["Na"], [[0, 0, 0]])
CRUSHED = Structure(Lattice.cubic(5.0), ["Na", "Cl"], [[0, 0, 0], [0.02, 0, 0]])

OF_CRYSTALS = [name for name, metric in METRICS.items() if isinstance(metric, CrystalMetric)]
WITH_A_REFERENCE = [name for name, metric in METRICS.items() if FEATURES not in metric.needs]

MIXED = [SALT, None, OTHER_SALT, SALT.copy(), DISORDERED, FLAT, CRUSHED, UNBALANCED]
REFERENCE = [OTHER_SALT, OXIDE]


@pytest.fixture(scope="module")
def report():
    return evaluate(MIXED, REFERENCE, num_workers=0)


def column(report, name):
    """Values of a column, None where there is none."""
    return report.table[name].astype(object).where(report.table[name].notna(), None).tolist()


def test_rows(report):
    table = report.table
    assert list(table.columns) == [
        "name",
        "formula",
        "num_atoms",
        "status",
        *OF_CRYSTALS,
        "reason",
        "warning",
    ]
    assert table.index.tolist() == list(range(8))
    assert table.index.name == "index"
    expected = ["ok", "not built", "ok", "ok", "failed", "failed", "ok", "ok"]
    assert table["status"].tolist() == expected
    assert table["formula"].dropna().tolist() == ["NaCl"] * 4 + ["NaLiO3"]
    assert table["num_atoms"].dropna().tolist() == [2, 2, 2, 2, 5]


def test_values(report):
    for name, expected in {
        "unique": [True, None, True, False, None, None, True, True],
        "novel": [True, None, False, True, None, None, True, True],
        "unique_novel": [True, None, False, False, None, None, True, True],
        "valid_unique_novel": [True, None, False, False, None, None, False, False],
        "valid": [True, None, True, True, None, None, False, True],
        "covalent": [True, None, True, True, None, None, False, True],
        "composition_valid": [True, None, True, True, None, None, True, False],
    }.items():
        assert column(report, name) == expected, name


def test_space_groups(report):
    labels = column(report, "space_group")
    assert labels[:7] == ["Fm-3m (225)", None, "Pm-3m (221)", "Fm-3m (225)", None, None, None]
    assert report.summary["metrics"]["space_group"]["counts"]["Fm-3m (225)"] == 2


def test_random_crystals_for_comparison(report):
    assert report.summary["random"]["count"] == 5
    assert report.summary["random"]["shares"].keys() == {"valid", "covalent"}
    judged = evaluate([SALT.copy() for _ in range(20)], metrics=["covalent"], num_workers=0)
    assert judged.summary["metrics"]["covalent"]["interval"] == [1.0, 1.0]
    assert judged.summary["random"]["shares"]["covalent"] < 1.0


def test_reasons(report):
    reasons = [None if r != r else r for r in report.table["reason"]]
    assert reasons[0] is None
    assert reasons[1] == "not built"
    assert reasons[2] == "novel, unique_novel, valid_unique_novel: same as reference: 0"
    assert reasons[3] == "unique, unique_novel, valid_unique_novel: same as structure 0"
    assert reasons[4].startswith("not a crystal: partial occupancy")
    assert reasons[5] == "cell has no volume"
    assert reasons[6].startswith("valid_unique_novel, covalent: atoms 0.037 of the sum of")
    assert "; valid: atoms 0.1 angstrom apart; space_group: " in reasons[6]
    assert reasons[7] == ("valid_unique_novel, composition_valid: oxidation states do not balance")


def test_densities_are_those_of_pymatgen(report):
    table = report.table
    for row, structure in ((0, SALT), (2, OTHER_SALT), (7, UNBALANCED)):
        assert table["density"][row] == pytest.approx(float(structure.density), rel=1e-6)
        per_volume = len(structure) / structure.volume
        assert table["atomic_density"][row] == pytest.approx(per_volume)
    assert table["density"].isna().tolist() == table["formula"].isna().tolist()


def test_shares_are_of_all_that_were_asked_for(report):
    structures, metrics = report.summary["structures"], report.summary["metrics"]
    assert structures == {
        "source": "a list of 8",
        "asked": 8,
        "built": 5,
        "status": {"ok": 5, "not built": 1, "failed": 2},
        "without_crystal": {"not built": 1, "not a crystal": 1, "cell has no volume": 1},
        "warnings": {},
    }
    uniqueness = dict(metrics["unique"])
    low, high = uniqueness.pop("interval")
    assert 0.1 < low < 0.5 < high < 0.9
    assert uniqueness == {
        "share": 4 / 8,
        "undecided": 0,
        "passed": 4,
        "failed": {"same as structure #": 1},
        "no_value": structures["without_crystal"],
    }
    assert metrics["novel"]["failed"] == {"same as reference": 1}
    assert metrics["unique_novel"]["share"] == 3 / 8
    assert metrics["valid"]["failed"] == {"atoms # angstrom apart": 1}
    for name, result in metrics.items():
        without = sum(result["no_value"].values())
        if METRICS[name].kind == "check":
            assert result["passed"] + sum(result["failed"].values()) + without == 8
        else:
            too_close = name == "space_group"
            assert result["count"] + without == 8
            assert (result["count"] == 4) == too_close
    values = report.table["density"].dropna()
    assert metrics["density"]["mean"] == pytest.approx(values.mean())
    assert metrics["density"]["median"] == values.median()
    assert metrics["density"]["std"] == pytest.approx(values.std(ddof=0))
    assert (metrics["density"]["min"], metrics["density"]["max"]) == (values.min(), values.max())


def test_summary_states_reference_settings_and_versions(report):
    summary = report.summary
    assert list(summary) == [
        "structures",
        "metrics",
        "set",
        "random",
        "reference",
        "settings",
        "versions",
        "seconds",
    ]
    reference = summary["reference"]
    assert (reference["name"], reference["count"]) == ("a list of 2", 2)
    assert len(reference["sha256"]) == 64
    assert summary["settings"] == {
        "tolerances": {"ltol": 0.2, "stol": 0.3, "angle_tol": 5.0},
        "timeout_s": 3.0,
        "unique_rule": "first",
        "symprec": 0.1,
        "min_distance": 0.5,
        "min_volume_per_atom": 0.1,
        "covalent_factor": 0.7,
        "oxidation_states": "icsd24",
        "max_combinations": 100_000,
    }
    assert summary["versions"]["chemeleon2_jax"] == c2.__version__
    assert list(summary["seconds"]) == ["structures", "reference", *WITH_A_REFERENCE]
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_the_same_again_in_worker_processes(report):
    again = evaluate(MIXED, REFERENCE, num_workers=2)
    assert again.table.equals(report.table)
    same, other = dict(again.summary), dict(report.summary)
    del same["seconds"], other["seconds"]
    assert json.dumps(same) == json.dumps(other)


def test_triples_are_structures(report):
    triples = [
        None if s is None else ([site.specie.Z for site in s], s.frac_coords, s.lattice.matrix)
        for s in [SALT, None, OTHER_SALT]
    ]
    judged = evaluate(triples, REFERENCE, num_workers=0)
    assert judged.table.equals(evaluate(MIXED[:3], REFERENCE, num_workers=0).table)


def test_metrics_are_chosen_in_order():
    judged = evaluate([SALT, CRUSHED], metrics=["valid", "density", "valid"], num_workers=0)
    assert list(judged.table.columns[4:]) == ["valid", "density", "reason", "warning"]
    assert list(judged.summary["metrics"]) == ["valid", "density"]
    # Metrics that were not chosen give no reasons.
    assert [r != r or r is None for r in judged.table["reason"]] == [True, False]


def test_without_a_reference():
    judged = evaluate([SALT], num_workers=0)
    assert "novel" not in judged.table.columns
    assert "unique" in judged.table.columns
    assert judged.summary["reference"] is None
    assert judged.summary["set"] == {}


def test_a_reference_that_no_metric_needs_is_not_loaded():
    judged = evaluate([SALT], "no such set", ["valid"], num_workers=0)
    assert judged.summary["reference"] is None


def test_a_path(tmp_path):
    SALT.to(filename=str(tmp_path / "a.cif"))
    (tmp_path / "b.cif").write_text("not a CIF")
    judged = evaluate(tmp_path, metrics=["valid"], num_workers=0)
    assert judged.table["name"].tolist() == ["a.cif", "b.cif"]
    assert judged.table["status"].tolist() == ["ok", "failed"]
    assert judged.summary["structures"]["source"] == str(tmp_path)
    assert judged.summary["structures"]["without_crystal"] == {"unparsable CIF": 1}


def test_nothing_but_failures():
    judged = evaluate([None, FLAT], REFERENCE, num_workers=0)
    for name, result in judged.summary["metrics"].items():
        if METRICS[name].kind == "check":
            assert (result["share"], result["interval"]) == (0.0, [0.0, 0.0])
        elif METRICS[name].kind == "label":
            assert result["count"] == 0
        else:
            assert [result[key] for key in ("mean", "std", "min", "median", "max")] == [None] * 5
    json.dumps(judged.summary, allow_nan=False)


def test_a_comparison_that_fails_has_no_value(monkeypatch):
    """The row says so, and keeps its other values."""

    def fail(work, *, tolerances):
        raise RuntimeError("no lattice")

    monkeypatch.setattr(matching, "_fit_batch", fail)
    judged = evaluate([SALT, OTHER_SALT, OXIDE], [SALT], num_workers=0)
    assert judged.table["unique"].isna().tolist() == [False, True, False]
    assert judged.table["novel"].isna().tolist() == [True, True, False]
    assert judged.table["unique_novel"].isna().tolist() == [True, True, False]
    assert judged.table["status"].tolist() == ["failed", "failed", "ok"]
    assert judged.table["valid"].tolist() == [True] * 3
    assert (
        "unique, unique_novel, valid_unique_novel: comparison with structure 0: RuntimeError"
        in judged.table["reason"][1]
    )
    result = judged.summary["metrics"]["novel"]
    # What is undecided counts neither as novel nor as known.
    assert (result["share"], result["undecided"]) == (1.0, 2)
    assert result["no_value"] == {"RuntimeError": 2}


def test_one_no_decides():
    """Not unique is enough, even if the other comparison failed."""
    subject = Subject([None, None], WorkerPool(0), Tolerances(), 1.0)
    subject._results[crystal_metrics.unique] = Column([False, True], ["same as structure 0", None])
    subject._results[crystal_metrics.novel] = Column([None, None], ["timeout", "timeout"])
    assert METRICS["unique_novel"].compute(subject) == Column(
        [False, None], ["same as structure 0", "timeout"]
    )


def test_tolerances_are_used():
    moved = SALT.copy().translate_sites([1], [0.05, 0.0, 0.0])
    for tolerances, is_unique in ((None, False), (Tolerances(stol=0.01), True)):
        judged = evaluate([SALT, moved], metrics=["unique"], tolerances=tolerances, num_workers=0)
        assert judged.table["unique"].tolist() == [True, is_unique]


def crystal_system(subject):
    """Crystal system by its lengths."""
    values = [
        None if c is None else "cubic" if np.ptp(np.linalg.norm(c[2], axis=1)) < 1e-9 else "other"
        for c in subject.crystals
    ]
    return Column(values, ["not built" if value is None else None for value in values])


def mean_size(subject):
    """Mean number of atoms."""
    sizes = [len(crystal[0]) for crystal in subject.crystals if crystal is not None]
    if not sizes:
        raise ValueError("no crystal has a size")
    return SetScore(float(np.mean(sizes)), len(sizes))


def infinite(subject):
    """A score that is not finite."""
    return SetScore(np.inf, 1)


@pytest.fixture
def more_metrics(monkeypatch):
    metrics = {
        **METRICS,
        "crystal_system": CrystalMetric(crystal_system, "label", settings={"symprec": 0.1}),
        "mean_size": SetMetric(mean_size, "atoms"),
        "infinite": SetMetric(infinite),
    }
    for user in (registry, module, summary):
        monkeypatch.setattr(user, "METRICS", metrics)
    return ["crystal_system", "mean_size", "infinite"]


def test_another_metric_is_a_function_and_a_line(more_metrics):
    long = Structure(Lattice.tetragonal(3.0, 5.0), ["Fe"], [[0, 0, 0]])
    judged = evaluate([SALT, None, OXIDE, long], metrics=more_metrics, num_workers=0)
    assert column(judged, "crystal_system") == ["cubic", None, "cubic", "other"]
    assert judged.table["status"].tolist() == ["ok", "not built", "ok", "ok"]
    assert judged.summary["metrics"]["crystal_system"] == {
        "counts": {"cubic": 2, "other": 1},
        "count": 3,
        "no_value": {"not built": 1},
    }
    assert judged.summary["set"] == {
        "mean_size": {"value": 8 / 3, "unit": "atoms", "count": 3, "reason": None},
        "infinite": {"value": None, "unit": "", "count": 1, "reason": "not finite: inf"},
    }
    assert judged.summary["settings"]["symprec"] == 0.1
    assert "cubic" in judged.table.to_csv()
    json.dumps(judged.summary, allow_nan=False)


def test_a_set_without_a_value_has_a_reason(more_metrics):
    judged = evaluate([None], metrics=more_metrics, num_workers=0)
    assert judged.summary["set"]["mean_size"] == {
        "value": None,
        "unit": "atoms",
        "count": 0,
        "reason": "no crystal has a size",
    }


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        (["uniqe"], ["reference"], "no metric 'uniqe': did you mean 'unique'"),
        (["novel"], [], "metric 'novel' needs a reference"),
        (["valid", "unique_novel"], [], "metric 'unique_novel' needs a reference"),
        (["structure_mmd"], ["reference"], "'structure_mmd' needs a VAE that gives features"),
    ],
)
def test_metrics_that_cannot_be_computed(names, given, message):
    with pytest.raises(ValueError, match=message):
        choose_metrics(names, given=given)


@pytest.mark.parametrize(
    ("structures", "reference", "error", "message"),
    [
        ([], None, ValueError, "there are no structures"),
        (SALT, None, ValueError, "structures is one structure; give a list"),
        ("nowhere", None, DatasetError, "there is no file or folder nowhere"),
        ([SALT], "mp-21", DatasetError, "no data set, file or folder 'mp-21'"),
        ([SALT], [None], ValueError, "reference 0 is not a crystal"),
    ],
)
def test_what_cannot_be_evaluated(structures, reference, error, message):
    with pytest.raises(error, match=message):
        evaluate(structures, reference, num_workers=0)


def test_not_a_structure_is_a_row():
    judged = evaluate([SALT, 3, "NaCl", {}], metrics=["valid"], num_workers=0)
    assert judged.table["status"].tolist() == ["ok", *["failed"] * 3]
    assert all(reason.startswith("not a crystal") for reason in judged.table["reason"][1:])


def test_public_name():
    report = c2.evaluate([SALT], metrics=["covalent", "atomic_density"], num_workers=0)
    assert isinstance(report, Report)
    assert report.table["covalent"].tolist() == covalent_check([SALT]).passed.tolist()
    assert math.isclose(report.table["atomic_density"][0], 8 / 5.64**3)


def test_what_a_file_declares_otherwise_is_a_warning(tmp_path):
    salt = rocksalt("Na", "Cl", 5.64).to(fmt="cif")
    (tmp_path / "a.cif").write_text(salt)
    (tmp_path / "b.cif").write_text(salt.replace("'Na1 Cl1'", "'Na1 Cl1 H2'"))
    judged = evaluate(tmp_path, metrics=["valid"], num_workers=0)
    assert judged.table["status"].tolist() == ["ok", "ok"]
    assert judged.table["warning"].tolist()[1] == "formula: read Cl1 Na1, declared Cl1 H2 Na1"
    assert judged.table["warning"].isna().tolist() == [True, False]
    assert judged.summary["structures"]["warnings"] == {"formula": 1}


def test_renamed_columns_of_structures_and_reference(tmp_path):
    crystals = [rocksalt("Na", "Cl", 5.64), rocksalt("K", "F", 5.3)]
    for name in ("some.csv", "known/train.csv"):
        write_split(tmp_path / name, crystals)
        path = tmp_path / name
        path.write_text(path.read_text().replace("material_id,cif", "id,structure", 1))
    rename = {"structure": "cif", "id": "material_id"}
    options = {"metrics": ["novel"], "num_workers": 0}
    judged = evaluate(tmp_path / "some.csv", tmp_path / "known", rename=rename, **options)
    assert judged.table["name"].tolist() == ["some-0", "some-1"]
    assert judged.table["novel"].tolist() == [False, False]
    # A list of structures has no columns; the reference's are enough.
    assert len(evaluate(crystals, str(tmp_path / "known"), rename=rename, **options).table) == 2
    with pytest.raises(
        DatasetError, match=r"no CSV file has the column 'foo'.*Known: id, structur"
    ):
        evaluate(tmp_path / "some.csv", rename={"foo": "cif"}, metrics=["valid"], num_workers=0)
