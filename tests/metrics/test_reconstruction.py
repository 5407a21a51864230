"""Match rates of known pairs, and pairs that fail or hang."""

import time

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core.lattice import Lattice
from pymatgen.core.structure import Structure

from chemeleon2_jax.crystals.structures import arrays_from_structure, structure_from_arrays
from chemeleon2_jax.metrics import reconstruction
from chemeleon2_jax.metrics.matching import Tolerances
from chemeleon2_jax.metrics.reconstruction import (
    STRICT_AND_LOOSE,
    MatchResult,
    match_rates,
)
from chemeleon2_jax.workers import WorkerPool

PEROVSKITE = (
    np.array([56, 22, 8, 8, 8]),
    np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]),
    np.eye(3) * 4.0,
)
SPINEL = arrays_from_structure(
    Structure.from_spacegroup(
        "Fd-3m:2",
        Lattice.cubic(8.08),
        ["Mg", "Al", "O"],
        [[0.125, 0.125, 0.125], [0.5, 0.5, 0.5], [0.2624, 0.2624, 0.2624]],
    ).get_primitive_structure()
)


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(2) as pool:
        yield pool


@pytest.fixture
def in_process():
    return WorkerPool(0)


def match_rate(pairs, pool, *, tolerances=None, **options) -> MatchResult:
    """Match with one set of tolerances."""
    return match_rates(pairs, pool, tolerances={"only": tolerances or Tolerances()}, **options)[
        "only"
    ]


def move(crystal, shift, *, seed=0, only=None):
    """Displace all atoms, or one, by a random vector of `shift` angstrom."""
    types, frac_coords, lattice = crystal
    vectors = np.random.default_rng(seed).normal(size=frac_coords.shape)
    vectors *= shift / np.linalg.norm(vectors, axis=1, keepdims=True)
    if only is not None:
        vectors[np.arange(len(types)) != only] = 0.0
    return types, frac_coords + vectors @ np.linalg.inv(lattice), lattice


def test_outcomes_of_pairs(pool):
    turned = (PEROVSKITE[0], PEROVSKITE[1] + 0.37, PEROVSKITE[2] @ np.roll(np.eye(3), 1, 0))
    other_formula = (np.array([56, 40, 8, 8, 8]), *PEROVSKITE[1:])
    elsewhere = (PEROVSKITE[0], PEROVSKITE[1][[0, 2, 1, 3, 4]], PEROVSKITE[2])
    broken = (PEROVSKITE[0], PEROVSKITE[1] * np.nan, PEROVSKITE[2])
    generated = [PEROVSKITE, turned, other_formula, elsewhere, broken, None]
    result = match_rate([(crystal, PEROVSKITE) for crystal in generated], pool)
    assert result.fits == (True, True, False, False, False, False)
    assert result.rate == result.rate_by_rms == pytest.approx(1 / 3)
    assert result.rms[:2] == pytest.approx((0.0, 0.0), abs=1e-6)
    assert result.mean_rms == pytest.approx(0.0, abs=1e-6)
    assert result.reasons == (
        None,
        None,
        "no match: another formula",
        "no match",
        "not built: fractional coordinates are not finite",
        "not built",
    )
    assert result.counts == {"no match": 2, "not built": 2}
    assert result.num_timeouts == 0


def test_rms_has_no_unit(in_process):
    moved = move(PEROVSKITE, 0.3)
    larger = [(crystal[0], crystal[1], crystal[2] * 2) for crystal in (moved, PEROVSKITE)]
    small, large = match_rate([(moved, PEROVSKITE), tuple(larger)], in_process).rms
    assert 0.0 < small < 0.3 / (64 / 5) ** (1 / 3) + 1e-6
    assert large == pytest.approx(small)


def test_the_two_definitions_of_a_match(in_process):
    """One atom far off: the RMS is within the tolerance, the largest displacement is not."""
    length = (abs(np.linalg.det(SPINEL[2])) / len(SPINEL[0])) ** (1 / 3)
    moved = move(SPINEL, 0.4 * length, only=0, seed=3)
    result = match_rate([(moved, SPINEL)], in_process)
    assert (result.rate, result.rate_by_rms) == (0.0, 1.0)
    assert result.rms[0] < 0.3
    assert result.reasons == ("no match: an atom is displaced by more than the tolerance",)
    assert result.counts == {"no match": 1}
    assert not StructureMatcher().fit(structure_from_arrays(*SPINEL), structure_from_arrays(*moved))


def test_rate_is_that_of_fit(in_process):
    moved = [move(SPINEL, shift, seed=i) for i, shift in enumerate(np.linspace(0.1, 1.5, 12))]
    matcher = StructureMatcher()
    target = structure_from_arrays(*SPINEL)
    expected = tuple(matcher.fit(target, structure_from_arrays(*crystal)) for crystal in moved)
    assert match_rate([(crystal, SPINEL) for crystal in moved], in_process).fits == expected
    assert 0 < sum(expected) < 12


def test_several_tolerances_in_one_pass(pool):
    longer = (SPINEL[0], SPINEL[1], SPINEL[2] * np.array([[1.0], [1.0], [1.33]]))
    pairs = [(SPINEL, SPINEL), (longer, SPINEL), (None, SPINEL)]
    done = []
    results = match_rates(pairs, pool, on_done=done.append)
    assert list(results) == list(STRICT_AND_LOOSE) == ["match_rate", "match_rate_loose"]
    assert sum(done) == 6
    assert results["match_rate"].rate <= results["match_rate_loose"].rate
    for name, tolerances in STRICT_AND_LOOSE.items():
        assert results[name] == match_rate(pairs, pool, tolerances=tolerances)


def test_a_broken_reference_is_told_apart(in_process):
    flat = (PEROVSKITE[0], PEROVSKITE[1], np.diag([4.0, 4.0, 0.0]))
    reasons = match_rate([(PEROVSKITE, flat)], in_process).reasons
    assert reasons[0].startswith("reference not built: ")


def test_no_pairs(in_process):
    result = match_rate([], in_process)
    assert (result.rate, result.rate_by_rms, result.mean_rms) == (0.0, 0.0, None)
    assert result.counts == {}


def sometimes_bad(structure, target, tolerances):
    """Replaces the matcher: the outcome depends on the cell's length."""
    match round(structure.lattice.a):
        case 5:
            time.sleep(60)
        case 6:
            raise RuntimeError("the matcher failed")
    return True, 0.1, None


def test_pairs_that_hang_or_fail(in_process, monkeypatch):
    monkeypatch.setattr(reconstruction, "_compare", sometimes_bad)
    pairs = [((*PEROVSKITE[:2], np.eye(3) * a), PEROVSKITE) for a in (4, 5, 6, 7, 8)]
    result = match_rate(pairs, in_process, timeout_s=0.3)
    assert result.fits == (True, False, False, True, True)
    assert result.reasons[1:3] == ("timeout after 0.3 s", "RuntimeError: the matcher failed")
    assert result.num_timeouts == 1
    assert result.rate == pytest.approx(0.6)


def test_tolerances_are_the_matchers_own():
    matcher = StructureMatcher()
    assert Tolerances() == Tolerances(matcher.ltol, matcher.stol, matcher.angle_tol)
