"""Groups of the same crystals, novelty against a reference, and comparisons that fail."""

import pickle
import time
from collections import Counter

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from chemeleon2_jax.crystals.structures import structures_to_crystals
from chemeleon2_jax.metrics import matching
from chemeleon2_jax.metrics.matching import Tolerances, reduce_cells, reduced_formula
from chemeleon2_jax.metrics.uniqueness import References, find_novel, find_unique
from chemeleon2_jax.workers import WorkerPool

FACE_CENTRED = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])


def rock_salt(cation="Na", length=5.64):
    """The conventional cell of eight atoms."""
    sites = [*FACE_CENTRED, *(FACE_CENTRED + 0.5)]
    return Structure(Lattice.cubic(length), [cation] * 4 + ["Cl"] * 4, sites)


def caesium_chloride(cation="Na", length=3.4):
    return Structure(Lattice.cubic(length), [cation, "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def cubic(length, element="Po"):
    return Structure(Lattice.cubic(length), [element], [[0, 0, 0]])


DISORDERED = Structure(Lattice.cubic(4.0), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])
THIN = (np.array([84]), np.zeros((1, 3)), np.diag([3.0, 3.0, 1e-9]))


def test_unique():
    structures = [
        rock_salt(),
        rock_salt().get_primitive_structure(),
        caesium_chloride(),
        None,
        rock_salt(length=6.0),  # volumes are scaled
        rock_salt("K"),
        DISORDERED,
        caesium_chloride().perturb(0.05),
    ]
    outcome = find_unique(structures)
    assert outcome.passed.tolist() == [True, False, True, False, False, True, False, False]
    assert outcome.matches == (None, 0, None, None, 0, None, None, 2)
    assert outcome.reasons[1] == "same as structure 0"
    assert outcome.errors[3] == outcome.reasons[3] == "not built"
    assert outcome.errors[6].startswith("ValueError: partial occupancy")
    assert [i for i, error in enumerate(outcome.errors) if error] == [3, 6]
    assert outcome.share == pytest.approx(3 / 8)


def carbons():
    """Polymorphs of one element, each also distorted a little and a lot."""
    centre = np.array([[0, 0, 0], [0.5, 0.5, 0.5]])
    diamond = np.concatenate([FACE_CENTRED, FACE_CENTRED + 0.25])
    structures = [
        Structure(Lattice.cubic(length), ["C"] * len(sites), sites)
        for length, sites in (
            (2.2, centre[:1]),
            (3.0, centre),
            (3.6, FACE_CENTRED),
            (3.57, diamond),
        )
    ]
    rng = np.random.default_rng(0)
    for scale in (0.02, 0.5, 1.0):
        for structure in structures[:4]:
            moved = structure.copy()
            for site in range(len(moved)):
                moved.translate_sites([site], rng.normal(size=3) * scale, frac_coords=False)
            structures.append(moved)
    return [structures[index] for index in rng.permutation(len(structures))]


def test_groups_are_those_of_the_matcher():
    structures = carbons()
    groups = StructureMatcher().group_structures(structures)
    place = {id(structure): index for index, structure in enumerate(structures)}
    expected = sorted(place[id(group[0])] for group in groups)
    outcome = find_unique(structures)
    assert np.flatnonzero(outcome.passed).tolist() == expected
    assert 1 < len(expected) < len(structures)
    sizes = Counter(
        index if match is None else match for index, match in enumerate(outcome.matches)
    )
    assert sorted(sizes.values()) == sorted(len(group) for group in groups)


def test_novel():
    references = References([rock_salt(), rock_salt("K"), caesium_chloride()])
    structures = [
        caesium_chloride(),
        rock_salt("Li"),
        None,
        rock_salt().make_supercell(2, in_place=False),
        caesium_chloride("K"),
    ]
    outcome = find_novel(structures, references)
    assert outcome.passed.tolist() == [False, True, False, False, True]
    assert outcome.matches == (2, None, None, 0, None)
    assert outcome.reasons == (
        "same as reference 2",
        None,
        "not built",
        "same as reference 0",
        None,
    )
    assert outcome.errors == (None, None, "not built", None, None)


def test_tolerances_are_used():
    moved = caesium_chloride()
    moved.translate_sites([1], [0.1, 0.0, 0.0])
    strict = Tolerances(stol=0.01)
    assert find_unique([caesium_chloride(), moved]).passed.tolist() == [True, False]
    assert find_unique([caesium_chloride(), moved], tolerances=strict).passed.all()
    references = References([caesium_chloride()])
    assert not find_novel([moved], references).passed[0]
    assert find_novel([moved], references, tolerances=strict).passed[0]


def test_worker_processes_give_the_same():
    structures = [*carbons(), None, THIN, DISORDERED]
    references = References(carbons()[:3])
    with WorkerPool(2) as pool:
        cells = reduce_cells(structures, pool)
        for function, arguments in ((find_unique, ()), (find_novel, (references,))):
            here, there = function(structures, *arguments), function(cells, *arguments, pool)
            assert here.matches == there.matches
            assert here.errors == there.errors


def test_nothing_to_compare():
    for outcome in (find_unique([]), find_novel([], References([rock_salt()]))):
        assert outcome.passed.shape == (0,)
        assert outcome.share == 0.0
    assert find_novel([rock_salt()], References([])).passed.tolist() == [True]


def test_cells_that_would_fill_the_memory_are_not_compared():
    long = (np.array([84]), np.zeros((1, 3)), np.diag([3.0, 3.0, 1e3]))
    outcome = find_unique([THIN, long, cubic(3.0)])
    assert outcome.passed.tolist() == [False, False, True]
    assert outcome.errors[0] == (
        "ValueError: a cell of 1e-09 x 3 x 3 angstrom is too thin: the limit is an edge of 0.1 "
        "angstrom"
    )
    layered = Structure(Lattice.tetragonal(3.0, 80.0), ["C"], [[0, 0, 0]])
    assert find_unique([layered, layered]).matches == (None, 0)


# --- references ----------------------------------------------------------------------------------


def test_references_by_formula():
    structures = [rock_salt(), rock_salt("K"), caesium_chloride()]
    for references in (References(structures), References(structures_to_crystals(structures))):
        assert len(references) == 3
        assert references.rows(((11, 1), (17, 1))) == [0, 2]
        assert references.rows(((17, 1),)) == []
        assert set(references.cells([2, 1, 2])) == {1, 2}


def test_references_are_reduced_and_measured_once(monkeypatch):
    references = pickle.loads(pickle.dumps(References([rock_salt(), caesium_chloride()])))
    first = references.minimum_distances(0, 10)
    assert references.minimum_distances(0, 10) is first
    assert references.minimum_distances(0, 5).shape == (5,)
    reduced = []
    reduce = matching._reduce

    def count(structure):
        reduced.append(structure)
        return reduce(structure)

    monkeypatch.setattr(matching, "_reduce", count)
    for _ in range(2):
        find_novel([rock_salt()], references)
    assert len(reduced) == 4  # two references once, one generated crystal twice


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (DISORDERED, "reference 1 is not a crystal: partial occupancy"),
        (None, "reference 1 is not a crystal"),
        (([], np.zeros((0, 3)), np.eye(3)), "reference 1 is not a crystal: no atom"),
    ],
)
def test_references_must_be_crystals(bad, message):
    with pytest.raises(ValueError, match=message):
        References([rock_salt(), bad])


@pytest.mark.parametrize(
    ("atom_types", "formula"),
    [
        ([17, 11, 11, 17], ((11, 1), (17, 1))),
        ([1, 8, 1], ((1, 2), (8, 1))),
        ([8, 8], ((8, 1),)),
        ([40] * 10 + [77] * 4 + [76] * 2, ((40, 5), (76, 1), (77, 2))),
    ],
)
def test_reduced_formula(atom_types, formula):
    assert reduced_formula(np.array(atom_types, np.int8)) == formula


# --- comparisons that fail: the matcher is replaced ----------------------------------------------


class Matcher:
    """Two cubes fit if their edges differ by at most 1; an edge of `bad` makes trouble."""

    def __init__(self, bad=None, trouble=None):
        self.bad, self.trouble, self.num_batches = bad, trouble, 0

    def __call__(self, work, *, tolerances):
        self.num_batches += 1
        edges = [
            round(float(np.linalg.norm(lattice[0])), 3) for _, _, lattice in (work[0], *work[1])
        ]
        if self.bad in edges:
            self.trouble()
        return [abs(edge - edges[0]) <= 1.0 for edge in edges[1:]]


def fail():
    raise RuntimeError("no lattice")


def never_end():
    while True:
        time.sleep(1.0)


def replace_matcher(monkeypatch, *arguments):
    matcher = Matcher(*arguments)
    monkeypatch.setattr(matching, "_fit_batch", matcher)
    return matcher


def test_a_group_goes_by_its_first_crystal(monkeypatch):
    replace_matcher(monkeypatch)
    cubes = [cubic(3.0), cubic(4.0), cubic(5.0), cubic(5.5)]
    assert find_unique(cubes).matches == (None, 0, None, 2)
    assert find_unique([cubes[1], cubes[0], cubes[2], cubes[3]]).matches == (None, 0, 0, None)


@pytest.mark.parametrize("trouble", [fail, never_end])
def test_a_failing_crystal_costs_itself(monkeypatch, trouble):
    replace_matcher(monkeypatch, 7.0, trouble)
    # Reduced beforehand: the limit is for the comparisons.
    bad, *others = reduce_cells([cubic(edge) for edge in (7.0, 3.0, 3.5, 9.0, 9.1)])
    reason = "RuntimeError: no lattice" if trouble is fail else "timeout after 0.2 s"
    last = find_unique([*others, bad], timeout_s=0.2)
    assert last.matches == (None, 0, None, 2, None)
    assert last.errors == (*[None] * 4, f"comparison with structure 0: {reason}")
    first = find_unique([bad, *others], timeout_s=0.2)
    assert first.matches == (None, None, 1, None, 3)
    assert first.errors == (f"comparison with most others: {reason}", *[None] * 4)
    assert first.passed.tolist() == [False, True, False, True, False]


def test_a_failure_among_many_is_found_in_its_batch(monkeypatch):
    replace_matcher(monkeypatch, 7.0, fail)
    edges = [3.0] * 40
    edges[29] = 7.0
    outcome = find_unique([cubic(edge) for edge in edges])
    assert [i for i, error in enumerate(outcome.errors) if error] == [29]
    assert set(outcome.matches) == {None, 0}
    assert outcome.passed.sum() == 1


def test_a_failing_first_crystal_is_given_up_early(monkeypatch):
    matcher = replace_matcher(monkeypatch, 7.0, fail)
    outcome = find_unique([cubic(edge) for edge in [7.0, *[3.0] * 100]])
    assert outcome.errors[0] is not None
    assert outcome.passed.sum() == 1
    # 7 batches and 16 single pairs with the first crystal, 7 batches with the second.
    assert matcher.num_batches == 7 + 16 + 7


def test_a_failing_reference(monkeypatch):
    replace_matcher(monkeypatch, 7.0, fail)
    references = References([cubic(7.0), cubic(3.0)])
    outcome = find_novel([cubic(3.0), cubic(5.0), cubic(5.0, "Fe")], references)
    # One match decides; without a match the failures leave it open.
    assert outcome.matches == (1, None, None)
    failure = "comparison with reference 0: RuntimeError: no lattice"
    assert outcome.errors == (None, failure, None)
    assert outcome.passed.tolist() == [False, False, True]
    only_thin = find_novel([cubic(5.0)], References([cubic(3.0), THIN]))
    assert only_thin.errors[0].startswith("comparison with reference 1: ValueError: a cell of")


# --- order and limits ----------------------------------------------------------------------------


def chain():
    """Five crystals, each the same as its neighbours at a strict tolerance, the ends not."""
    return [
        Structure(Lattice.tetragonal(4.0, c), ["Fe", "Fe"], [[0, 0, 0], [0.5, 0.5, 0.5]])
        for c in (4.6, 5.0, 5.4, 5.8, 6.2)
    ]


def test_components_do_not_depend_on_the_order():
    strict = Tolerances(ltol=0.1, stol=0.3, angle_tol=5.0)
    crystals = chain()
    counts = {rule: set() for rule in ("first", "components")}
    for order in ([0, 1, 2, 3, 4], [2, 0, 4, 1, 3], [4, 3, 2, 1, 0], [1, 3, 0, 2, 4]):
        for rule, found in counts.items():
            comparison = find_unique([crystals[i] for i in order], tolerances=strict, rule=rule)
            found.add(int(comparison.passed.sum()))
    assert counts["components"] == {1}
    assert len(counts["first"]) > 1
    with pytest.raises(ValueError, match="no rule of uniqueness 'chains'"):
        find_unique(crystals, rule="chains")


def test_components_have_errors_of_their_own(monkeypatch):
    crystals = [cubic(3.0), cubic(3.0), cubic(9.0)]

    def fail_large(work, *, tolerances):
        if any(abs(arrays[2]).max() > 8.0 for arrays in (work[0], *work[1])):
            raise RuntimeError("large")
        return [True] * len(work[1])

    monkeypatch.setattr(matching, "_fit_batch", fail_large)
    outcome = find_unique(crystals, rule="components")
    assert outcome.matches == (None, 0, None)
    assert outcome.errors[0] is None
    assert "large" in outcome.errors[2]


def test_a_crystal_alone_with_its_formula_is_not_reduced(monkeypatch):
    def never(arrays):
        raise RuntimeError("timeout")

    monkeypatch.setattr(matching, "_reduce", never)
    crystals = [rock_salt(), rock_salt("K"), caesium_chloride("Br"), None]
    assert find_unique(crystals).passed.tolist() == [True, True, True, False]
    assert find_novel(crystals, References([cubic(3.0)])).passed.tolist() == [True] * 3 + [False]
    assert find_unique([*crystals, rock_salt()]).errors[0] == "RuntimeError: timeout"
