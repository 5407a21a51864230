"""The VAE: formulas, independence of the rows' layout, and reconstruction."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from pymatgen.core import Lattice

from chemeleon2_jax.crystals.arrays import lattice_parameters, scale_lengths
from chemeleon2_jax.data.augment import Augmentation, Noise, augment, corrupt
from chemeleon2_jax.models.encoders.registry import ENCODERS, read_encoder
from chemeleon2_jax.models.losses import vae_terms
from chemeleon2_jax.models.sizes import DecoderSizes, VAESizes
from chemeleon2_jax.models.vae import (
    VAE,
    Decoded,
    Posterior,
    blur_latents,
    reconstruct,
    sample_posterior,
)
from chemeleon2_jax.rows.rows import atom_normal
from tests.examples import (
    SIZES,
    assert_layouts_agree,
    in_layout,
    packed,
    place,
    random_crystals,
    random_model,
    relative,
)

LATENT = 4
SMALL = {"d_model": 16, "nhead": 2, "dim_feedforward": 32, "num_layers": 1}


def small_sizes(encoder="transformer", **options):
    return VAESizes(
        latent_dim=LATENT,
        encoder=read_encoder({"name": encoder, **SMALL, "num_freqs": 4}),
        decoder=DecoderSizes(**SMALL),
        **options,
    )


def small_vae(encoder="transformer", *, dtype=jnp.float32, **options):
    """(graphdef, params) of a small VAE."""
    sizes = small_sizes(encoder, **options)
    return random_model(lambda: VAE(sizes, rngs=nnx.Rngs(0), dtype=dtype))


def autoencode(graphdef, params, rows, noise):
    """Encode, draw and decode: (posterior, decoded)."""
    vae = nnx.merge(graphdef, params)
    posterior = vae.encode(rows)
    return posterior, vae.decode(sample_posterior(posterior, noise), rows)


compiled = jax.jit(autoencode, static_argnums=0)


def noise_of(batch):
    """Noise that depends on the crystal alone."""
    parts = [
        np.random.default_rng(index).normal(size=(size, LATENT)).astype(np.float32)
        for index, size in zip(batch.indices, batch.where.sizes, strict=True)
    ]
    return batch.to_tokens(np.concatenate(parts))


def run(model, batch, rows=None):
    """Autoencode a batch, or other rows of the same shape."""
    return compiled(*model, batch.rows if rows is None else rows, noise_of(batch))


@jax.jit
def draw(rows):
    """The random part of a step: augmented and corrupted crystals, and noise of the latents."""
    keys = jax.random.split(jax.random.key(0), 3)
    clean = augment(keys[0], rows, Augmentation())
    seen = corrupt(keys[1], clean, Noise(0.2, 0.1))
    return clean, seen, atom_normal(keys[2], rows, LATENT)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_packing_changes_no_output_and_no_gradient(encoder):
    graphdef, params = small_vae(encoder)

    def total(params, rows, draws):
        clean, seen, noise = (*(replace(r, edges=rows.edges) for r in draws[:2]), draws[2])
        vae = nnx.merge(graphdef, params)
        posterior = vae.encode(seen)
        z = sample_posterior(posterior, noise)
        decoded = vae.decode(z, clean)
        terms = vae_terms(decoded, posterior, clean)
        sums = [value for name, (value, _) in terms.items() if name.startswith("loss_")]
        atoms = {"z": z, "logits": decoded.atom_logits, "frac": decoded.frac_coords}
        return sum(sums), (atoms, {"lengths": decoded.lengths_scaled, "angles": decoded.angles})

    crystals = random_crystals()
    assert_layouts_agree(total, params, crystals, draw=draw, edges=ENCODERS[encoder].needs_edges)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_padding_reaches_no_atom(encoder):
    model = small_vae(encoder)
    (batch,) = in_layout(random_crystals(), "packed", edges=ENCODERS[encoder].needs_edges)
    rows = batch.rows
    rng = np.random.default_rng(0)
    padding, empty = ~np.asarray(rows.is_atom), ~np.asarray(rows.is_crystal)
    dirty = replace(
        rows,
        atom_types=jnp.where(padding, rng.integers(0, 100, padding.shape), rows.atom_types),
        frac_coords=jnp.where(padding[..., None], 50.0, rows.frac_coords),
        lattices=jnp.where(empty[..., None, None], 30.0 * jnp.eye(3) + 1.0, rows.lattices),
        position=jnp.where(padding, 11, rows.position),
    )
    clean, decoded = run(model, batch)
    found, found_decoded = run(model, batch, dirty)
    np.testing.assert_array_equal(batch.atoms(found.mean), batch.atoms(clean.mean))
    np.testing.assert_array_equal(
        batch.atoms(found_decoded.frac_coords), batch.atoms(decoded.frac_coords)
    )
    cells = (batch.where.take_slots(d.angles) for d in (found_decoded, decoded))
    np.testing.assert_array_equal(*cells)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_order_of_crystals_does_not_matter(encoder):
    model = small_vae(encoder)
    crystals, order = random_crystals(), [4, 2, 0, 5, 1, 3]
    (batch,) = in_layout(crystals, "packed", edges=ENCODERS[encoder].needs_edges)
    where = batch.where
    elsewhere = replace(
        where,
        sizes=where.sizes[order],
        row=(where.row[order] + 1) % 3,  # and in other rows
        slot=where.slot[order],
        start=where.start[order],
    )
    shuffled = place(crystals, elsewhere, order)
    _, first = run(model, batch)
    _, second = run(model, shuffled)
    frac = batch.where.split_atoms(first.frac_coords)
    for i, found in enumerate(shuffled.where.split_atoms(second.frac_coords)):
        np.testing.assert_allclose(found, frac[order[i]], atol=1e-5)
    lengths = batch.where.take_slots(first.lengths_scaled)
    found = shuffled.where.take_slots(second.lengths_scaled)
    np.testing.assert_allclose(found, lengths[order], atol=1e-5)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_outputs_are_finite_in_padding_and_empty_slots_too(encoder):
    (batch,) = in_layout(random_crystals(), "packed", edges=ENCODERS[encoder].needs_edges)
    posterior, decoded = run(small_vae(encoder), batch)
    rows = batch.rows
    assert not rows.is_atom[2].any()  # an empty row
    assert not rows.is_crystal[:2].all(1).any()
    for leaf in jax.tree.leaves((posterior, decoded)):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_bfloat16_is_close_and_comes_out_in_float32(encoder):
    (batch,) = in_layout(random_crystals(), "packed", edges=ENCODERS[encoder].needs_edges)
    exact = run(small_vae(encoder), batch)
    graphdef, params = small_vae(encoder, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    rough = run((graphdef, params), batch)
    for ours, theirs in zip(jax.tree.leaves(rough), jax.tree.leaves(exact), strict=True):
        assert ours.dtype == jnp.float32
        assert relative(ours, theirs) < 5e-2
    assert relative(rough[1].frac_coords, exact[1].frac_coords) > 1e-5  # it did compute in bfloat16


def test_outputs_have_the_shapes_of_the_rows():
    batch = packed(random_crystals())
    rows = batch.rows
    posterior, decoded = run(small_vae(), batch)
    num_rows, tokens = rows.position.shape
    slots = rows.is_crystal.shape[1]
    assert posterior.mean.shape == posterior.logvar.shape == (num_rows, tokens, LATENT)
    assert posterior.features.shape == (num_rows, tokens, 16)
    assert decoded.atom_logits.shape == (num_rows, tokens, 100)
    assert decoded.frac_coords.shape == (num_rows, tokens, 3)
    assert decoded.lengths_scaled.shape == decoded.angles.shape == (num_rows, slots, 3)


def test_encoder_and_decoder_by_the_formulas():
    """One crystal against the formulas, with the model's transformers and linear layers."""
    crystals = random_crystals((5,))
    batch = packed(crystals)
    graphdef, params = small_vae()
    posterior, decoded = run((graphdef, params), batch)
    types, frac, lattice = crystals.crystal(0)
    k = np.arange(8)
    angle = np.arange(5)[:, None] * np.pi / 2048.0 ** (2 * k / 16)
    index = np.concatenate([np.sin(angle), np.cos(angle)], -1).astype(np.float32)
    everything = jnp.zeros((1, 5, 5))

    @jax.jit
    def formulas(params, noise):
        vae = nnx.merge(graphdef, params)
        encoder, decoder = vae.encoder, vae.decoder
        tokens = encoder.atom_types[...][types] + encoder.lattices(lattice.reshape(1, 9))
        tokens = tokens + encoder.frac_coords(frac) + index
        features = encoder.transformer(tokens, everything)
        mean, logvar = jnp.split(features @ vae.quant.kernel[...], 2, axis=-1)
        z = mean + jnp.exp(0.5 * logvar) * noise
        x = decoder.transformer(z @ decoder.post_quant.kernel[...] + index, everything)
        cell = x.mean(0) @ decoder.lattice_head.kernel[...]
        heads = (decoder.atom_head(x), x @ decoder.frac_head.kernel[...])
        return (mean, logvar, features, *heads), (cell[:3], cell[3:])

    atoms, slots = formulas(params, batch.atoms(noise_of(batch)))
    found = (*posterior, decoded.atom_logits, decoded.frac_coords)
    for ours, theirs in zip(found, atoms, strict=True):
        assert relative(batch.atoms(ours), theirs) < 1e-5
    for ours, theirs in zip((decoded.lengths_scaled, decoded.angles), slots, strict=True):
        assert relative(batch.where.take_slots(ours)[0], theirs) < 1e-5


def test_a_posterior_is_clamped_and_sampled():
    graphdef, params = small_vae()
    params["quant"]["kernel"] = params["quant"]["kernel"].replace(1e4 * params["quant"]["kernel"])
    posterior, _ = run((graphdef, params), packed(random_crystals()))
    assert float(posterior.logvar.max()) == 20.0
    assert float(posterior.logvar.min()) == -30.0
    assert np.abs(posterior.mean).max() > 100
    wide = Posterior(
        jnp.full((1, 2, 1), 3.0), jnp.full((1, 2, 1), np.log(4.0)), jnp.zeros((1, 2, 1))
    )
    noise = jnp.array([[[1.0], [-0.5]]])
    np.testing.assert_allclose(sample_posterior(wide, noise), [[[5.0], [2.0]]], rtol=1e-6)


def test_the_encoder_depends_on_types_cell_coordinates_and_order():
    model = small_vae()
    batch = packed(random_crystals((4,)))
    rows = batch.rows
    base = batch.atoms(run(model, batch)[0].mean)
    changes = {
        "atom_types": rows.atom_types.at[0, 0].set(int(rows.atom_types[0, 0]) % 99 + 1),
        "frac_coords": rows.frac_coords.at[0, 0].add(0.1),
        "lattices": rows.lattices * 1.05,
        "position": jnp.where(rows.is_atom, 3 - rows.position, 0),
    }
    for name, values in changes.items():
        found = batch.atoms(run(model, batch, replace(rows, **{name: values}))[0].mean)
        assert (np.abs(found - base).max(-1) > 1e-5).all(), name


def test_reconstruction_of_crystals():
    crystals = random_crystals()
    batch = packed(crystals)
    lengths, angles = lattice_parameters(crystals.lattices)
    types = crystals.atom_types.astype(np.int32)
    logits = 5.0 * np.eye(100, dtype=np.float32)[types]
    logits[2] = np.eye(100)[0]  # the mask becomes hydrogen
    decoded = Decoded(
        batch.to_tokens(logits),
        batch.to_tokens(crystals.frac_coords + np.float32(1.5)),
        batch.to_slots(scale_lengths(lengths, crystals.num_atoms)),
        batch.to_slots(angles),
    )
    built = jax.jit(reconstruct)(decoded, batch.rows)
    expected = types.copy()
    expected[2] = 1
    np.testing.assert_array_equal(batch.atoms(built.atom_types), expected)
    assert built.atom_types.dtype == jnp.int32
    # Coordinates are unchanged.
    np.testing.assert_array_equal(
        batch.atoms(built.frac_coords), crystals.frac_coords + np.float32(1.5)
    )
    np.testing.assert_allclose(batch.where.take_slots(built.lengths), lengths, rtol=1e-5)
    np.testing.assert_array_equal(batch.where.take_slots(built.angles), angles)
    for i, lattice in enumerate(batch.where.take_slots(built.lattices)):
        theirs = Lattice.from_parameters(*lengths[i], *np.degrees(angles[i])).matrix
        np.testing.assert_allclose(lattice, theirs, atol=1e-4)


def test_without_a_types_head_types_are_those_of_the_rows():
    model, batch = small_vae(atom_type_predict=False), packed(random_crystals())
    _, decoded = jax.eval_shape(lambda: autoencode(*model, batch.rows, noise_of(batch)))
    assert decoded.atom_logits is None
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), decoded)
    built = jax.jit(reconstruct)(ones, batch.rows)
    np.testing.assert_array_equal(built.atom_types, batch.rows.atom_types)


def test_projection_to_foundation_features():
    graphdef, params = small_vae(foundation_alignment=True)
    vae = nnx.merge(graphdef, params)
    z = jax.random.normal(jax.random.key(0), (2, 3, LATENT))
    kernel, bias = vae.projection.kernel[...], vae.projection.bias[...]
    assert kernel.shape == (LATENT, 256)
    np.testing.assert_allclose(vae.project(z), z @ kernel + bias, atol=1e-5)
    with pytest.raises(ValueError, match="built without foundation alignment"):
        nnx.merge(*small_vae()).project(z)


def test_the_published_size_has_51_million_parameters():
    model = nnx.eval_shape(lambda: VAE(VAESizes(), rngs=nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in leaves) / 1e6 == pytest.approx(51.1, abs=0.05)


def test_the_example_has_empty_slots_and_an_empty_row():
    """Which the tests above need."""
    rows = packed(random_crystals()).rows
    assert rows.is_crystal.shape == (3, 5)
    assert int(rows.is_crystal.sum()) == len(SIZES)
    assert not rows.is_atom[2].any()


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_noise_of_latents_is_a_share_of_each_channels_spread(layout):
    crystals = random_crystals((9, 8, 9, 9, 9, 2))
    (batch,) = in_layout(crystals, layout)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(46, LATENT)) * [1.0, 2.0, 0.0, 5.0] + 3.0
    padding = ~batch.rows.is_atom[..., None]
    z = jnp.where(padding, 1e3, batch.to_tokens(values.astype(np.float32)))
    noise = jnp.ones_like(z)

    def added(z):
        return blur_latents(z, noise, batch.rows, level=0.2) - z

    expected = np.broadcast_to(0.2 * values.std(0), values.shape)
    np.testing.assert_allclose(batch.atoms(added(z)), expected, rtol=1e-4, atol=1e-5)
    # Larger latents would make the noise harmless; the gradient must not say so.
    assert np.abs(jax.grad(lambda z: jnp.sum(added(z)))(z)).max() == 0.0


def test_periodic_coordinates_are_an_input_of_the_transformer():
    plain, waves = (
        VAE(
            replace(small_sizes(), encoder=replace(small_sizes().encoder, periodic_coords=on)),
            rngs=nnx.Rngs(0),
        )
        for on in (False, True)
    )
    assert plain.encoder.frac_coords.fc1.kernel.shape == (3, 16)
    assert waves.encoder.frac_coords.fc1.kernel.shape == (9, 16)
    batch = packed(random_crystals())
    # Without the weights of the fractions, what is left knows no face of the cell.
    kernel = waves.encoder.frac_coords.fc1.kernel
    kernel[...] = kernel[...].at[:3].set(0.0)
    shifted = replace(batch.rows, frac_coords=batch.rows.frac_coords + 1.0)
    means = [
        batch.atoms(vae.encode(rows).mean)
        for vae in (waves, plain)
        for rows in (batch.rows, shifted)
    ]
    np.testing.assert_allclose(means[0], means[1], atol=1e-3)
    assert np.abs(means[2] - means[3]).max() > 0.01
