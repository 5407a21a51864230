"""Every term of the VAE's loss against plain numpy on two crystals."""

from __future__ import annotations

from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chemeleon2_jax.models.losses import (
    CoordsLoss,
    LossWeights,
    foundation_alignment,
    kl_divergence,
    total_loss,
    vae_terms,
)
from chemeleon2_jax.models.vae import Decoded, Posterior
from tests.examples import in_layout, packed, random_crystals

SIZES, LATENT = (3, 5), 4
jitted_terms = jax.jit(vae_terms)

NAMES = ("atom_types", "lengths", "angles", "frac_coords", "kl")


@pytest.fixture(scope="module")
def example():
    """Two crystals, with outputs of decoder and encoder per atom and per crystal."""
    rng = np.random.default_rng(0)
    values = {
        "logits": rng.normal(size=(8, 100)),
        "frac": rng.normal(size=(8, 3)),
        "lengths": rng.uniform(1, 4, (2, 3)),
        "angles": rng.uniform(1, 2, (2, 3)),
        "mean": rng.normal(size=(8, LATENT)),
        "logvar": rng.normal(size=(8, LATENT)),
    }
    return random_crystals(SIZES), {k: v.astype(np.float32) for k, v in values.items()}


def to_rows(crystals, values, layout):
    (batch,) = in_layout(crystals, layout)
    # Values in padding and empty slots must not count.
    atoms = {k: batch.to_tokens(values[k]) for k in ("logits", "frac", "mean", "logvar")}
    padding = ~batch.rows.is_atom[..., None]
    atoms = {k: jnp.where(padding, 7.0, v) for k, v in atoms.items()}
    slots = {k: batch.to_slots(values[k]) for k in ("lengths", "angles")}
    slots = {k: jnp.where(batch.rows.is_crystal[..., None], v, 9.0) for k, v in slots.items()}
    decoded = Decoded(atoms["logits"], atoms["frac"], slots["lengths"], slots["angles"])
    return decoded, Posterior(atoms["mean"], atoms["logvar"], atoms["mean"]), batch


def by_hand(crystals, values):
    """The means of the terms, in float64 loops."""
    logits = values["logits"].astype(float)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    types = crystals.atom_types.astype(int)
    kl = 0.0
    for mean, logvar in zip(
        values["mean"].astype(float), values["logvar"].astype(float), strict=True
    ):
        kl += sum(-0.5 * (1 + v - m**2 - np.exp(v)) for m, v in zip(mean, logvar, strict=True))
    lengths, angles = [], []
    for i, size in enumerate(SIZES):
        a, b, c = crystals.lattices[i].astype(float)
        norms = [np.linalg.norm(v) for v in (a, b, c)]
        lengths.append([n / size ** (1 / 3) for n in norms])
        pairs = ((b, c), (a, c), (a, b))
        angles.append([np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v)) for u, v in pairs])
    return {
        "atom_types": np.mean([-log_p[i, z] for i, z in enumerate(types)]),
        "lengths": np.mean((values["lengths"] - lengths) ** 2),
        "angles": np.mean((values["angles"] - angles) ** 2),
        "frac_coords": np.mean((values["frac"] - crystals.frac_coords) ** 2),
        "kl": kl / 8,
    }


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_terms_against_loops(example, layout):
    crystals, values = example
    decoded, posterior, batch = to_rows(crystals, values, layout)
    terms = jitted_terms(decoded, posterior, batch.rows)
    expected = by_hand(crystals, values)
    for name, value in expected.items():
        total, count = terms[f"loss_{name}"]
        assert float(count) == (2 if name in ("lengths", "angles") else 8)
        assert float(total / count) == pytest.approx(value, rel=1e-5), name
    correct, count = terms["atom_type_accuracy"]
    assert float(correct) == (values["logits"].argmax(-1) == crystals.atom_types).sum()
    assert float(count) == 8
    assert set(terms) == {f"loss_{name}" for name in NAMES} | {"atom_type_accuracy"}


def test_accuracy_counts_hits(example):
    crystals, values = example
    logits = np.zeros((8, 100), np.float32)
    logits[np.arange(8), crystals.atom_types] = [1, 1, 1, -1, 1, 1, 1, 1]
    terms = jitted_terms(*_call(crystals, values | {"logits": logits}))
    assert float(terms["atom_type_accuracy"][0]) == 7


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("unit", ["fraction", "spacing"])
@pytest.mark.parametrize("periodic", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("shift_weight", [1.0, 0.1])
def test_coordinates_against_loops(example, layout, unit, periodic, shift_weight):
    crystals, values = example
    decoded, posterior, batch = to_rows(crystals, values, layout)
    options = CoordsLoss(unit, periodic, shift_weight)
    total, count = vae_terms(decoded, posterior, batch.rows, coords=options)["loss_frac_coords"]
    expected = []
    for index, size in enumerate(SIZES):
        lattice = crystals.lattices[index].astype(float)
        spacing = (abs(np.linalg.det(lattice)) / size) ** (1 / 3)
        start = crystals.offsets[index]
        atoms = slice(start, start + size)
        difference = values["frac"][atoms].astype(float) - crystals.frac_coords[atoms]
        both = (difference, difference - np.round(difference))
        if unit == "spacing":
            both = tuple(d @ lattice / spacing for d in both)
        shifts = [d.mean(0) for d in both]
        plain, wrapped = (
            np.mean((d - shift) ** 2 + shift_weight * shift**2, 1)
            for d, shift in zip(both, shifts, strict=True)
        )
        expected += ((1 - periodic) * plain + periodic * wrapped).tolist()
    assert float(total / count) == pytest.approx(np.mean(expected), rel=1e-5)


def test_whole_cells_cost_nothing_modulo_the_cell(example):
    crystals, values = example
    decoded, posterior, rows = _call(crystals, values)
    moved = decoded._replace(frac_coords=rows.frac_coords + jnp.array([1.0, -2.0, 0.0]))
    for unit in ("fraction", "spacing"):
        terms = vae_terms(moved, posterior, rows, coords=CoordsLoss(unit, 1.0))
        assert float(terms["loss_frac_coords"][0]) < 1e-8


def _call(crystals, values):
    decoded, posterior, batch = to_rows(crystals, values, "packed")
    return decoded, posterior, batch.rows


def test_default_weights_are_the_originals():
    expected = {"atom_types": 1, "lengths": 1, "angles": 10, "frac_coords": 10, "kl": 1e-5, "fa": 0}
    assert asdict(LossWeights()) == expected


def test_total_is_the_weighted_sum(example):
    crystals, values = example
    terms = jitted_terms(*_call(crystals, values))
    expected = by_hand(crystals, values)
    total, means = total_loss(terms, LossWeights())
    by_default = {"atom_types": 1, "lengths": 1, "angles": 10, "frac_coords": 10, "kl": 1e-5}
    hand = sum(by_default[name] * expected[name] for name in NAMES)
    assert float(total) == pytest.approx(hand, rel=1e-5)
    assert float(means["loss_kl"]) == pytest.approx(expected["kl"], rel=1e-5)
    assert "atom_type_accuracy" in means  # reported, but not part of the loss


@pytest.mark.parametrize("name", [*NAMES, "fa"])
def test_each_weight_scales_its_term(example, name):
    crystals, values = example
    terms = jitted_terms(*_call(crystals, values))
    terms["loss_fa"] = (jnp.float32(6.0), jnp.float32(8.0))
    off = LossWeights(**dict.fromkeys(asdict(LossWeights()), 0.0))
    assert float(total_loss(terms, off)[0]) == 0.0
    total, means = total_loss(terms, replace(off, **{name: 3.0}))
    assert float(total) == pytest.approx(3.0 * float(means[f"loss_{name}"]), rel=1e-6)
    expected = by_hand(crystals, values) | {"fa": 0.75}
    assert float(means[f"loss_{name}"]) == pytest.approx(expected[name], rel=1e-5)


def test_without_a_types_head(example):
    crystals, values = example
    decoded, posterior, rows = _call(crystals, values)
    terms = jitted_terms(decoded._replace(atom_logits=None), posterior, rows)
    assert set(terms) == {f"loss_{name}" for name in NAMES if name != "atom_types"}
    total, _ = total_loss(terms, LossWeights(atom_types=1000.0))
    expected = by_hand(crystals, values)
    hand = expected["lengths"] + 10 * (expected["angles"] + expected["frac_coords"])
    assert float(total) == pytest.approx(hand + 1e-5 * expected["kl"], rel=1e-5)


def test_perfect_outputs_cost_nothing(example):
    crystals, values = example
    decoded, posterior, rows = _call(crystals, values)
    types = jax.nn.one_hot(rows.atom_types, 100) * 50.0
    perfect = decoded._replace(atom_logits=types, frac_coords=rows.frac_coords)
    standard = Posterior(*(jnp.zeros_like(posterior.mean) for _ in range(3)))
    _, means = total_loss(jitted_terms(perfect, standard, rows), LossWeights())
    assert float(means["loss_atom_types"]) < 1e-6
    assert float(means["loss_frac_coords"]) == 0.0
    assert float(means["loss_kl"]) == 0.0
    assert float(means["atom_type_accuracy"]) == 1.0


def test_kl_of_one_number():
    # KL(N(1, e) || N(0, 1)) = (1 + e - 1 - 1) / 2, twice
    posterior = Posterior(jnp.ones((1, 1, 2)), jnp.ones((1, 1, 2)), jnp.ones((1, 1, 2)))
    np.testing.assert_allclose(kl_divergence(posterior), [[np.e - 1.0]], rtol=1e-6)


def _cosine(u, v):
    return float(u @ v / np.linalg.norm(u) / np.linalg.norm(v))


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_foundation_alignment_against_a_double_loop(layout):
    crystals = random_crystals(SIZES)
    rng = np.random.default_rng(1)
    p, f = rng.normal(size=(2, 8, 6)).astype(np.float32)
    p[:4] += 2 * f[:4]  # some points are aligned well enough
    (batch,) = in_layout(crystals, layout)
    total, count = jax.jit(foundation_alignment)(
        jnp.where(batch.rows.is_atom[..., None], batch.to_tokens(p), 3.0),
        jnp.where(batch.rows.is_atom[..., None], batch.to_tokens(f), -2.0),
        batch.rows.is_atom,
    )
    pairs = [
        max(abs(_cosine(p[i], p[j]) - _cosine(f[i], f[j])) - 0.25, 0.0)
        for i in range(8)
        for j in range(8)
    ]
    points = [max(0.5 - _cosine(f[i], p[i]), 0.0) for i in range(8)]
    assert 0 < np.count_nonzero(pairs) < 64
    assert 0 < np.count_nonzero(points) < 8
    assert float(count) == 8
    assert float(total / count) == pytest.approx(np.mean(pairs) + np.mean(points), rel=1e-5)


def test_foundation_alignment_has_a_finite_gradient_at_zero():
    """Features of padding are zero vectors."""
    batch = packed(random_crystals(SIZES))
    zero = jnp.zeros((*batch.rows.position.shape, 6))

    def loss(p):
        return foundation_alignment(p, zero, batch.rows.is_atom)[0]

    assert np.isfinite(jax.grad(loss)(zero)).all()
    assert float(loss(zero)) == pytest.approx(0.5 * 8)
