"""The diffusion transformer: packing, padding, and the places of eps and variance in its output."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from chemeleon2_jax.models.condition_kinds import ChemicalSystemCondition, FloatCondition
from chemeleon2_jax.models.dit import DiT, split_output, time_embedding
from chemeleon2_jax.models.sizes import NAMED_SIZES, ConditionSizes, DiTSizes
from chemeleon2_jax.rows.filling import build_rows
from chemeleon2_jax.rows.rows import atom_normal, crystal_keys
from tests.examples import (
    assert_layouts_agree,
    in_layout,
    packed,
    random_crystals,
    random_model,
    relative,
)

LATENT = 4
SMALL = DiTSizes(latent_dim=LATENT, hidden_size=16, depth=2, num_heads=2)


def small_dit(sizes=SMALL, *, dtype=jnp.float32):
    """(graphdef, params) with random parameters: as built, a DiT returns zeros."""
    return random_model(lambda: DiT(sizes, rngs=nnx.Rngs(0), dtype=dtype))


def apply_dit(graphdef, params, x, t, rows, condition=None):
    return nnx.merge(graphdef, params)(x, t, rows, condition=condition)


run = jax.jit(apply_dit, static_argnums=0)


@jax.jit
def inputs(rows):
    """Noise and times that depend on the crystal alone, and a condition made from its id."""
    noise_key, time_key = jax.random.split(jax.random.key(0))
    draw = jax.vmap(jax.vmap(lambda k: jax.random.randint(k, (), 0, 1000)))
    condition = jnp.sin((rows.crystal_id[..., None] + 1) * jnp.arange(1.0, 17.0))
    return atom_normal(noise_key, rows, LATENT), draw(crystal_keys(time_key, rows)), condition


def test_packing_changes_no_output_and_no_gradient():
    graphdef, params = small_dit()
    interleaved = replace(SMALL, variance_layout="interleaved")

    def total(params, rows, draws):
        x, t, condition = draws
        output = apply_dit(graphdef, params, x, t, rows, condition)
        eps, variance = split_output(output, rows, SMALL)
        other_eps, _ = split_output(output, rows, interleaved)
        value = jnp.sin(eps) + jnp.cos(variance) + jnp.sin(2 * other_eps)
        atoms = {"eps": eps, "variance": variance, "interleaved": other_eps}
        return jnp.sum(value * rows.is_atom[..., None]), (atoms, {})

    assert_layouts_agree(total, params, random_crystals(), draw=inputs)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_padding_and_other_crystals_reach_no_atom(layout):
    graphdef, params = small_dit()
    (batch,) = in_layout(random_crystals(), layout)
    x, t, _ = inputs(batch.rows)
    is_atom = batch.rows.is_atom[..., None]
    before = run(graphdef, params, jnp.where(is_atom, x, 0.0), t, batch.rows)
    garbage = 1e4 * np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    dirty = jnp.where(is_atom, x, garbage)
    other_t = jnp.where(batch.rows.is_crystal, t, 17)
    after = run(graphdef, params, dirty, other_t, batch.rows)
    np.testing.assert_array_equal(batch.atoms(after), batch.atoms(before))
    # The time of one crystal changes that crystal alone.
    row, slot = batch.where.row[2], batch.where.slot[2]
    changed = run(graphdef, params, dirty, other_t.at[row, slot].add(100), batch.rows)
    pairs = zip(batch.where.split_atoms(changed), batch.where.split_atoms(before), strict=True)
    for i, (a, b) in enumerate(pairs):
        if i == 2:
            assert (np.abs(a - b).max(-1) > 1e-3).all()
        else:
            np.testing.assert_array_equal(a, b)


def test_the_output_depends_on_condition_position_and_other_atoms():
    batch = packed(random_crystals((4,)))
    rows = batch.rows
    x, t, condition = inputs(rows)
    backwards = replace(rows, position=jnp.where(rows.is_atom, 3 - rows.position, 0))
    denoise = partial(run, *small_dit())
    base = batch.atoms(denoise(x, t, rows))
    changed = {
        "condition": denoise(x, t, rows, condition),
        "position": denoise(x, t, backwards),
        "another atom": denoise(x.at[0, 0, 0].add(1.0), t, rows),
    }
    for name, output in changed.items():
        assert (np.abs(batch.atoms(output) - base).max(-1) > 1e-4).all(), name
    zero = denoise(x, t, rows, jnp.zeros_like(condition))
    np.testing.assert_array_equal(batch.atoms(zero), base)


def test_an_estimate_is_an_input_of_a_model_with_self_conditioning():
    batch = packed(random_crystals((4,)))
    x, t, _ = inputs(batch.rows)

    @partial(jax.jit, static_argnums=0)
    def with_estimate(graphdef, params, estimate):
        return nnx.merge(graphdef, params)(x, t, batch.rows, estimate=estimate)

    model = small_dit(replace(SMALL, self_conditioning=True))
    base = batch.atoms(with_estimate(*model, None))
    np.testing.assert_array_equal(batch.atoms(with_estimate(*model, jnp.zeros_like(x))), base)
    moved = batch.atoms(with_estimate(*model, x))
    assert (np.abs(moved - base).max(-1) > 1e-4).all()
    assert DiTSizes.from_dict(replace(SMALL, self_conditioning=True).to_dict()).self_conditioning
    assert "self_conditioning" not in SMALL.to_dict()  # as earlier versions wrote it


def norm(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)


def silu(x):
    return x / (1 + jnp.exp(-x))


def test_blocks_are_modulated_by_time_and_condition():
    """One crystal against the formulas, with the model's attention, MLP and linear layers."""
    batch = packed(random_crystals((4,)))
    x, t, condition = inputs(batch.rows)
    found = batch.atoms(run(*small_dit(), x, t, batch.rows, condition))

    k = np.arange(8)
    angle = np.arange(4)[:, None] * np.pi / 2048.0 ** (2 * k / 16)
    index = np.concatenate([np.sin(angle), np.cos(angle)], -1)
    everything = jnp.zeros((1, 4, 4))
    graphdef, params = small_dit()

    @jax.jit
    def formulas(params, x, t, condition):
        dit = nnx.merge(graphdef, params)
        fc1, fc2 = dit.t_embedder.fc1, dit.t_embedder.fc2
        c = silu(fc2(silu(fc1(time_embedding(t)))) + condition)
        h = dit.x_embedder(x) + index
        for block in dit.blocks:
            modulation = jnp.split(block.modulation(c), 6, axis=-1)
            shift1, scale1, gate1, shift2, scale2, gate2 = modulation
            h = h + gate1 * block.attention(norm(h) * (1 + scale1) + shift1, everything)
            h = h + gate2 * block.mlp(norm(h) * (1 + scale2) + shift2)
        shift, scale = jnp.split(dit.final_modulation(c), 2, axis=-1)
        return dit.final(norm(h) * (1 + scale) + shift)

    of_crystal = (batch.where.take_slots(t), batch.where.take_slots(condition))
    expected = formulas(params, batch.atoms(x), *of_crystal)
    assert relative(found, expected) < 1e-5


def test_a_new_model_returns_zeros():
    """adaLN-Zero: the modulations and the last layer start at zero, and no other layer."""

    @jax.jit
    def build():
        return nnx.split(DiT(SMALL, rngs=nnx.Rngs(0)), nnx.Param)[1]

    params, (graphdef, _) = build(), small_dit()
    rows = packed(random_crystals()).rows
    x, t, _ = inputs(rows)
    assert (np.asarray(run(graphdef, params, x, t, rows)) == 0).all()
    zero = {"final", "final_modulation", "modulation"}
    for path, leaf in nnx.to_flat_state(params):
        if path[-1] == "kernel":
            assert (np.abs(leaf[...]).max() == 0) == (path[-2] in zero), path


def test_outputs_are_finite_in_padding_and_empty_slots_too():
    rows = packed(random_crystals()).rows
    x, t, _ = inputs(rows)
    assert not rows.is_atom[2].any()  # an empty row
    assert np.isfinite(run(*small_dit(), x, t, rows)).all()


def test_bfloat16_is_close_and_comes_out_in_float32():
    rows = packed(random_crystals()).rows
    x, t, _ = inputs(rows)
    exact = run(*small_dit(), x, t, rows)
    graphdef, params = small_dit(dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    rough = run(graphdef, params, x, t, rows)
    assert rough.dtype == jnp.float32
    assert 1e-5 < relative(rough, exact) < 5e-2


def test_time_embedding():
    found = time_embedding(jnp.array([0, 1, 999]))
    assert found.shape == (3, 256)
    for t, row in zip((0, 1, 999), found, strict=True):
        angle = t * np.exp(-np.log(10000.0) * np.arange(128) / 128)
        np.testing.assert_allclose(row, [*np.cos(angle), *np.sin(angle)], atol=1e-4)


# --- conditions -----------------------------------------------------------------------------------

GAP, SYSTEM = FloatCondition("gap"), ChemicalSystemCondition("system")
CONDITIONAL = replace(SMALL, conditions=ConditionSizes((GAP, SYSTEM), 16))


def conditions_of(crystals):
    """Conditions of the crystals, some of them null."""
    gaps = [None if i == 1 else i / 3 for i in range(len(crystals))]
    systems = [None if i in (1, 2) else ("Na-Cl", "Mg-O")[i % 2] for i in range(len(crystals))]
    return {"gap": GAP.encode(gaps), "system": SYSTEM.encode(systems)}


def with_conditions(batch, crystals):
    rows = build_rows(crystals, batch.where, conditions=conditions_of(crystals))
    return jax.tree.map(jnp.asarray, rows)


def test_conditions_are_embedded_and_added_to_the_time():
    crystals = random_crystals()
    batch, (graphdef, params) = packed(crystals), small_dit(CONDITIONAL)
    rows = with_conditions(batch, crystals)
    x, t, _ = inputs(rows)
    dit = nnx.merge(graphdef, params)
    embedding = dit.embed(rows)
    assert embedding.shape == (*rows.is_crystal.shape, 16)
    assert np.isfinite(embedding).all()
    conditional = batch.where.split_atoms(dit(x, t, rows, condition=embedding))
    unconditional = batch.where.split_atoms(dit(x, t, rows))
    for index, (ours, null) in enumerate(zip(conditional, unconditional, strict=True)):
        # The conditions of the second crystal are null.
        assert (np.abs(ours - null).max() < 1e-5) == (index == 1)
    null = jnp.broadcast_to(dit.conditions.null(), embedding.shape)
    assert relative(dit(x, t, rows, condition=null), dit(x, t, rows)) < 1e-6


def test_the_same_weights_without_conditions():
    """A model with conditions has the parameters of one without, and those of the conditions."""
    (_, params), (graphdef, plain) = small_dit(CONDITIONAL), small_dit()
    kept = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(plain)}
    names = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(params)}
    assert kept < names
    assert all(name.startswith("conditions/") for name in names - kept)
    assert nnx.merge(graphdef, plain).conditions is None


def test_wrong_conditions():
    rows = packed(random_crystals()).rows
    with pytest.raises(ValueError, match="this model takes no conditions"):
        nnx.merge(*small_dit()).embed(rows)
    with pytest.raises(ValueError, match="takes the conditions gap, system; got none"):
        nnx.merge(*small_dit(CONDITIONAL)).embed(rows)
    narrow = replace(SMALL, conditions=ConditionSizes((GAP,), 8))
    with pytest.raises(ValueError, match="embedded in 8 dimensions, but the denoiser has 16"):
        DiT(narrow, rngs=nnx.Rngs(0))


# --- eps and variance -----------------------------------------------------------------------------


def numbered(crystals, layout):
    """An output (R, T, 2L) with a different number at every place of an atom."""
    (batch,) = in_layout(crystals, layout)
    values = np.arange(crystals.num_atoms.sum() * 2 * LATENT, dtype=np.float32)
    return batch, batch.to_tokens(values.reshape(-1, 2 * LATENT))


def test_fixed_variance_is_all_eps():
    rows = packed(random_crystals()).rows
    output = jnp.ones((*rows.position.shape, LATENT))
    eps, variance = split_output(output, rows, replace(SMALL, learn_sigma=False))
    np.testing.assert_array_equal(eps, output * rows.is_atom[..., None])
    assert variance is None


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_per_token_split(layout):
    batch, output = numbered(random_crystals(), layout)
    eps, variance = split_output(output, batch.rows, SMALL)
    np.testing.assert_array_equal(eps, output[..., :LATENT])
    np.testing.assert_array_equal(variance, output[..., LATENT:])


def test_interleaved_eps_is_the_same_packed_and_padded():
    sizes = replace(SMALL, variance_layout="interleaved")
    crystals = random_crystals()
    found = {}
    for layout in ("packed", "padded"):
        batch, output = numbered(crystals, layout)
        eps, variance = split_output(output, batch.rows, sizes)
        found[layout] = batch.atoms(eps)
        assert (variance is None) == (layout == "packed")
    np.testing.assert_array_equal(found["packed"], found["padded"])
    # By hand: eps of atom i is half i % 2 of token i // 2 of its own crystal.
    values = np.arange(crystals.num_atoms.sum() * 2 * LATENT).reshape(-1, 2, LATENT)
    starts = np.repeat(crystals.offsets[:-1], crystals.num_atoms)
    index = np.arange(len(values)) - starts
    np.testing.assert_array_equal(found["packed"], values[starts + index // 2, index % 2])


def test_interleaved_variance_depends_on_the_padding():
    """Of atom i it is half (N + i) % 2 of token (N + i) // 2, N being the padded length."""
    sizes = replace(SMALL, variance_layout="interleaved")
    rng = np.random.default_rng(0)
    (batch,) = in_layout(random_crystals(), "padded")
    output = rng.normal(size=(*batch.rows.position.shape, 2 * LATENT)).astype(np.float32)
    eps, variance = split_output(jnp.asarray(output), batch.rows, sizes)
    length = output.shape[1]
    halves = output.reshape(len(output), length, 2, LATENT)
    for i in range(length):
        is_atom = batch.rows.is_atom[:, i, None]
        expected = np.where(is_atom, halves[:, i // 2, i % 2], 0.0)  # padding has eps 0
        np.testing.assert_array_equal(eps[:, i], expected)
        token, half = divmod(length + i, 2)
        np.testing.assert_array_equal(variance[:, i], halves[:, token, half])


# --- sizes ----------------------------------------------------------------------------------------


def test_unknown_layout_of_the_variance():
    with pytest.raises(ValueError, match="variance_layout is 'odd'; choose one of"):
        DiT(replace(SMALL, variance_layout="odd"), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("sizes", [SMALL, CONDITIONAL])
def test_sizes_survive_json(sizes):
    again = DiTSizes.from_dict(json.loads(json.dumps(sizes.to_dict())))
    assert again == sizes
    assert hash(again) == hash(sizes)


def test_sizes_from_before_there_were_conditions():
    values = SMALL.to_dict()
    del values["conditions"], values["lora"]
    assert DiTSizes.from_dict(values) == SMALL


@pytest.mark.parametrize(("learn_sigma", "width"), [(True, 2 * LATENT), (False, LATENT)])
def test_output_width(learn_sigma, width):
    rows = packed(random_crystals()).rows
    model = nnx.eval_shape(lambda: DiT(replace(SMALL, learn_sigma=learn_sigma), rngs=nnx.Rngs(0)))
    x, t = jnp.zeros((*rows.position.shape, LATENT)), jnp.zeros(rows.is_crystal.shape, int)
    graphdef, params = nnx.split(model, nnx.Param)
    output = jax.eval_shape(lambda p: apply_dit(graphdef, p, x, t, rows), params)
    assert output.shape == (*rows.position.shape, width)


def test_the_published_size_has_130_million_parameters():
    depth, hidden, heads = NAMED_SIZES["B"]
    sizes = DiTSizes(hidden_size=hidden, depth=depth, num_heads=heads)
    assert sizes == DiTSizes()
    model = nnx.eval_shape(lambda: DiT(sizes, rngs=nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in leaves) / 1e6 == pytest.approx(129.5, abs=0.05)


def test_named_sizes():
    assert NAMED_SIZES["S"] == (6, 384, 6)
    assert NAMED_SIZES["L"] == (24, 1024, 16)
    assert NAMED_SIZES["XL"] == (28, 1152, 16)
