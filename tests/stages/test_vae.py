"""The VAE stage: step, options, validation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from chemeleon2_jax.common.errors import ConfigError, DatasetError
from chemeleon2_jax.crystals.arrays import lattice_parameters
from chemeleon2_jax.runs.config import fit_config
from chemeleon2_jax.stages import build
from chemeleon2_jax.stages import vae as vae_stage
from chemeleon2_jax.stages.vae_objective import VAEObjective
from chemeleon2_jax.stages.vae_tolerance import TOLERANCE_VALUES
from chemeleon2_jax.training.loop import fit
from tests.lowering import lower_train_step
from tests.tiny import first_step, meta_of, numbers, vae_config, write_two

pytestmark = pytest.mark.usefixtures("quick_compilation")

QUIET = {"augmentation.rotate": False, "augmentation.translate": False}


@pytest.fixture(scope="module")
def base(tiny_data):
    return first_step(vae_config(tiny_data))


def test_first_step_reaches_every_parameter(base):
    loss, terms, gradients = base
    names = {"atom_types", "lengths", "angles", "frac_coords", "kl"}
    kinds = {f"{kind}_{name}" for kind in ("loss", "weighted") for name in names}
    assert set(terms) == kinds | {"atom_type_accuracy"}
    weights = {"atom_types": 1.0, "lengths": 1.0, "angles": 10.0, "frac_coords": 10.0, "kl": 1e-5}
    total = sum(weight * terms[f"loss_{name}"] for name, weight in weights.items())
    assert loss == pytest.approx(total, rel=1e-5)
    assert sum(terms[f"weighted_{name}"] for name in names) == pytest.approx(loss, rel=1e-5)
    # Untrained, the types cost about what guessing costs.
    assert terms["loss_atom_types"] == pytest.approx(np.log(100), rel=0.2)
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), name
        assert np.abs(gradient).max() > 0, name


def test_padded_rows_change_nothing(tiny_data, base):
    loss, _, gradients = first_step(vae_config(tiny_data, packing={"layout": "padded"}))
    assert loss == pytest.approx(base[0], rel=1e-5)
    np.testing.assert_allclose(numbers(gradients), numbers(base[2]), rtol=1e-3, atol=1e-5)


def test_bfloat16_computes_about_the_same_in_float32_parameters(tiny_data, base):
    stage = build(vae_config(tiny_data, trainer={"precision": "bf16"}))
    assert {leaf.dtype for leaf in jax.tree.leaves(stage.init_params)} == {jnp.dtype("float32")}
    loss, _, gradients = first_step(stage)
    assert loss != base[0]
    assert loss == pytest.approx(base[0], rel=0.02)
    bf16, f32 = numbers(gradients), numbers(base[2])
    cosine = bf16 @ f32 / np.linalg.norm(bf16) / np.linalg.norm(f32)
    assert 0.99 < cosine < 1.0


def test_cspnet_is_an_encoder_too(tiny_data, base):
    loss, terms, gradients = first_step(
        vae_config(tiny_data, vae_module={"encoder.name": "cspnet"})
    )
    assert np.isfinite(loss)
    assert set(terms) == set(base[1])
    assert "encoder/layers/0/edge1/kernel" in gradients
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), name
        assert np.abs(gradient).max() > 0, name


OPTIONS = {
    "kl_warmup_steps": 100,
    "coords_loss.unit": "spacing",
    "coords_loss.periodic_from": 10,
    "coords_loss.periodic_over": 3,
    "latent_noise": 0.1,
    "encoder.periodic_coords": True,
    "loss_weights.kl": 1.0,
}


def test_first_step_with_all_options_reaches_every_parameter(tiny_data, base):
    loss, terms, gradients = first_step(vae_config(tiny_data, vae_module=OPTIONS))
    assert np.isfinite(loss)
    assert set(terms) == set(base[1])
    # The KL has no weight yet, the coordinates cost more than in fractions.
    weights = {"atom_types": 1.0, "lengths": 1.0, "angles": 10.0, "frac_coords": 10.0}
    total = sum(weight * terms[f"loss_{name}"] for name, weight in weights.items())
    assert loss == pytest.approx(total, rel=1e-5)
    assert terms["loss_frac_coords"] > base[1]["loss_frac_coords"]
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), name
        assert np.abs(gradient).max() > 0, name


def test_objective_of_a_step(tiny_data):
    objective = VAEObjective.from_config(vae_config(tiny_data, vae_module=OPTIONS).vae_module)
    assert objective.needs_step
    kl = [float(objective.at(step).weights.kl) for step in (0, 25, 100, 1000)]
    assert kl == pytest.approx([0.0, 0.25, 1.0, 1.0])
    periodic = [float(objective.at(step).coords.periodic) for step in (0, 9, 10, 11, 13, 99)]
    assert periodic == pytest.approx([0.0, 0.0, 0.25, 0.5, 1.0, 1.0])
    # A validation has the final weights at any step: its values are comparable.
    assert (objective.weights.kl, objective.coords.periodic) == (1.0, 1.0)
    constant = VAEObjective.from_config(vae_config(tiny_data).vae_module)
    assert not constant.needs_step
    assert constant.at(7) == constant


def test_the_step_reaches_the_loss(tiny_data):
    stage = build(
        vae_config(tiny_data, vae_module={**QUIET, "kl_warmup_steps": 4, "loss_weights.kl": 1.0})
    )
    step = jax.jit(stage.loss_fn)
    assert stage.batches.steps_per_epoch == 3
    batches = [stage.batches.batch(index).arrays for index in (0, 3)]
    assert [int(number) for _, number in batches] == [0, 3]
    rows = batches[0][0]
    losses = [step(stage.init_params, {}, jax.random.key(0), (rows, np.int32(n))) for n in (0, 4)]
    (first, terms), (last, _) = losses
    assert float(last - first) == pytest.approx(float(terms["loss_kl"]), rel=1e-4)


def test_noise_on_the_latents_changes_the_reconstruction_alone(tiny_data, base):
    _, terms, _ = first_step(vae_config(tiny_data, vae_module={"latent_noise": 0.3}))
    assert terms["loss_kl"] == pytest.approx(base[1]["loss_kl"], rel=1e-6)
    assert terms["loss_atom_types"] != base[1]["loss_atom_types"]


@pytest.mark.parametrize("predicts", [True, False])
def test_validation_measures_the_tolerance_of_the_decoder(tiny_data, predicts):
    options = {
        "tolerance.num_samples": 3,
        "tolerance.posterior_scale": 0.5,
        "atom_type_predict": predicts,
    }
    stage = build(vae_config(tiny_data, vae_module=options))
    validation = stage.validate(stage.init_params, {})
    assert set(stage.value_names) == set(validation.values)
    shares = [validation.values[f"val/{name}"] for name in TOLERANCE_VALUES]
    assert shares[0] > 0
    assert all(0.0 <= share <= 1.0 for share in shares[1:])
    assert validation.pictures["val/tolerance"].dtype == np.uint8


def test_given_atom_types_are_not_predicted(tiny_data, base):
    loss, terms, gradients = first_step(
        vae_config(
            tiny_data, vae_module={"atom_type_predict": False, "loss_weights.atom_types": 0.0}
        )
    )
    assert np.isfinite(loss)
    assert set(base[1]) - set(terms) == {
        "loss_atom_types",
        "weighted_atom_types",
        "atom_type_accuracy",
    }
    assert base[2].keys() - gradients.keys() == {
        "decoder/atom_head/bias",
        "decoder/atom_head/kernel",
    }


def clean_and_noisy(monkeypatch, config: ConfigDict):
    """Rows of the first batch, and the target and the encoder's input made of them."""
    monkeypatch.setattr(
        vae_stage, "autoencoder_terms", lambda vae, clean, noisy, **_: (clean, noisy)
    )
    monkeypatch.setattr(
        vae_stage, "total_loss", lambda terms, weights: (terms[0], {"noisy": terms[1]})
    )
    monkeypatch.setattr(vae_stage, "weighted_means", lambda means, weights: {})
    stage = build(config)
    rows = stage.batches.batch(0).arrays
    clean, others = jax.jit(stage.loss_fn)(stage.init_params, {}, jax.random.key(5), rows)
    return rows, clean, others["noisy"]


def test_without_augmentation_and_noise_nothing_changes(monkeypatch, tiny_data):
    rows, clean, noisy = clean_and_noisy(monkeypatch, vae_config(tiny_data, vae_module=QUIET))
    for changed in (clean, noisy):
        jax.tree.map(np.testing.assert_array_equal, rows, changed)


@pytest.mark.parametrize("per_crystal", [True, False])
def test_rotation_and_translation(monkeypatch, tiny_data, per_crystal):
    options = {"augmentation.per_crystal": per_crystal}
    rows, clean, noisy = clean_and_noisy(monkeypatch, vae_config(tiny_data, vae_module=options))
    jax.tree.map(np.testing.assert_array_equal, clean, noisy)
    before, after = (np.asarray(x.lattices)[rows.is_crystal] for x in (rows, clean))
    for rotated, original in zip(
        lattice_parameters(after), lattice_parameters(before), strict=True
    ):
        np.testing.assert_allclose(rotated, original, rtol=1e-4)
    rotations = np.linalg.solve(before, after)  # (crystals, 3, 3)
    assert np.abs(rotations[0] - np.eye(3)).max() > 0.1
    assert (np.abs(rotations - rotations[0]).max() < 1e-4) != per_crystal
    shift = (np.asarray(clean.frac_coords) - rows.frac_coords)[rows.is_atom] % 1.0
    assert shift.std(axis=0).min() > 0.01
    assert np.asarray(clean.frac_coords).min() >= 0.0
    assert np.asarray(clean.frac_coords).max() < 1.0


def test_only_the_input_of_the_encoder_is_noisy(monkeypatch, tiny_data):
    options = {**QUIET, "noise.ratio": 0.3, "noise.corruption_scale": 0.05}
    rows, clean, noisy = clean_and_noisy(
        monkeypatch, vae_config(tiny_data, vae_module=options, data={"batch_size": 41})
    )
    jax.tree.map(np.testing.assert_array_equal, rows, clean)
    real = rows.is_atom
    masked = (np.asarray(noisy.atom_types) == 0)[real]
    moved = (np.asarray(noisy.frac_coords) != rows.frac_coords).any(-1)[real]
    assert not (masked & moved).any()
    for share in (masked.mean(), moved.mean()):  # of 172 atoms: 0.3 +- 3 standard deviations
        assert 0.2 < share < 0.4
    kept = np.asarray(noisy.atom_types)[real][~masked]
    np.testing.assert_array_equal(kept, rows.atom_types[real][~masked])


@pytest.fixture(scope="module")
def features(tiny_data):
    """Random features of every crystal by id, as in a file."""
    data = vae_stage.load_data(vae_config(tiny_data), edges=False)
    rng = np.random.default_rng(0)
    return {
        name.decode(): rng.normal(size=(count, 256)).astype(np.float32)
        for crystals in (data.train, data.val)
        for name, count in zip(crystals.material_ids, crystals.num_atoms, strict=True)
    }


def aligned(tiny_data, path):
    options = {"loss_weights.fa": 1.0, "foundation_features": str(path)}
    return vae_config(tiny_data, vae_module=options)


def test_alignment_with_features_of_a_file(tmp_path, tiny_data, features, base):
    np.savez(tmp_path / "features.npz", **features)
    stage = build(aligned(tiny_data, tmp_path / "features.npz"))
    rows = stage.batches.batch(1).arrays
    crystals = stage.batches.crystals
    ids = np.take_along_axis(rows.crystal_id, rows.slot, axis=1)
    for row, token in np.argwhere(rows.is_atom):
        name = crystals.material_ids[ids[row, token]].decode()
        expected = features[name][rows.position[row, token]]
        np.testing.assert_array_equal(rows.features["foundation"][row, token], expected)
    loss, terms, gradients = first_step(stage)
    assert terms["loss_fa"] > 0
    assert loss == pytest.approx(base[0] + terms["loss_fa"], rel=1e-4)
    assert np.abs(gradients["projection/kernel"]).max() > 0
    np.savez(tmp_path / "other.npz", **{name: -array for name, array in features.items()})
    _, other, _ = first_step(aligned(tiny_data, tmp_path / "other.npz"))
    assert {name for name in terms if abs(terms[name] - other[name]) > 1e-3} == {
        "loss_fa",
        "weighted_fa",
    }
    values = stage.validate(stage.init_params, {}).values
    assert values["val/loss_fa"] > 0
    assert set(stage.value_names) == set(values)
    assert meta_of(stage).vae.foundation_alignment


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("no path", ConfigError, "needs vae_module.foundation_features"),
        ("no file", DatasetError, "there is no file"),
        ("damaged", DatasetError, "cannot be read as a .npz file"),
        ("not an archive", DatasetError, "cannot be read as a .npz file"),
        ("one less", DatasetError, "no features for the crystal 'val-3'"),
        ("atoms", DatasetError, r"of 'train-0' have the shape \(1, 256\), not \(2, 256\)"),
        ("width", DatasetError, r"of 'train-0' have the shape \(2, 255\), not \(2, 256\)"),
    ],
)
def test_features_that_do_not_fit(tmp_path, tiny_data, features, change, error, message):
    path = tmp_path / "features.npz"
    content = dict(features)
    if change == "one less":
        del content["val-3"]
    elif change == "atoms":
        content["train-0"] = content["train-0"][:1]
    elif change == "width":
        content["train-0"] = content["train-0"][:, :-1]
    if change == "not an archive":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif change not in ("no path", "no file"):
        np.savez(path, **content)
    if change == "damaged":
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(error, match=message):
        build(aligned(tiny_data, "" if change == "no path" else path))


def test_overfits_two_crystals(tmp_path):
    config = vae_config(
        write_two(tmp_path / "two"),
        vae_module={**QUIET, "match_rate.num_samples": 2, "encoder.d_model": 32},
        trainer={"max_steps": 250, "check_val_every_n_epoch": 0},
    )
    stage = build(config)
    before = stage.validate(stage.init_params, {}).values
    after = fit(stage, fit_config(config), run_dir=tmp_path / "run").values
    assert before["val/match_rate"] == 0.0
    assert set(stage.value_names) == set(before)
    assert after["val/match_rate"] == after["val/match_rate_loose"] == 1.0
    assert after["val/atom_type_accuracy"] == 1.0
    for name in ("lengths", "angles", "frac_coords", "atom_types"):
        assert after[f"val/loss_{name}"] < 0.02 * before[f"val/loss_{name}"], name


def test_validation_is_repeatable_and_independent_of_the_batches(tiny_data):
    stage, other = (build(vae_config(tiny_data, data={"batch_size": size})) for size in (12, 3))
    params = stage.init_params
    first = stage.validate(params, {}).values
    assert stage.validate(params, {}).values == first
    assert other.validate(params, {}).values == pytest.approx(first, rel=1e-5)
    assert set(stage.value_names) == set(first)
    assert set(first) == {
        "val/total_loss",
        "val/atom_type_accuracy",
        *(f"val/loss_{name}" for name in ("atom_types", "lengths", "angles", "frac_coords", "kl")),
    }


def test_fields_and_meta_of_the_stage(tiny_data):
    config = vae_config(
        tiny_data,
        callbacks={"model_checkpoint.monitor": "val/match_rate", "model_checkpoint.mode": "max"},
    )
    stage = build(config)
    assert (stage.name, stage.monitor, stage.mode) == ("train_vae", "val/match_rate", "max")
    sizes = meta_of(stage).vae
    assert (sizes.latent_dim, sizes.encoder.d_model, sizes.decoder.num_layers) == (8, 16, 1)
    assert meta_of(stage).size_table == (0, 0, 20, 0, 0, 12, 0, 0, 9)
    assert meta_of(stage).config["data"]["data_dir"] == str(tiny_data)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"trainer": {"precision": "bf32"}}, "trainer.precision is 'bf32'"),
        ({"vae_module": {"encoder.name": "cspnett"}}, "encoder.name is 'cspnett'; choose one of"),
        ({"vae_module": {"decoder.nhead": 3}}, "width 16 is not a multiple of the 3"),
    ],
)
def test_values_that_no_model_has(tiny_data, blocks, message):
    with pytest.raises(ConfigError, match=message):
        build(vae_config(tiny_data, **blocks))


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("encoder", ["transformer", "cspnet"])
def test_step_lowers_for_accelerators(tiny_data, encoder, platform):
    config = vae_config(tiny_data, vae_module={"encoder.name": encoder})
    exported = lower_train_step(build(config), fit_config(config), platform=platform)
    assert exported.platforms == (platform,)


@pytest.mark.parametrize("encoder", ["vae", "cspnet"])
def test_four_devices_are_one(four_devices, encoder):
    one, four = (np.load(four_devices / f"{encoder}_{n}.npz") for n in (1, 4))
    assert np.abs(one["params"] - one["start"]).max() > 0.005
    assert one["metrics"].shape == (3, 14)
    for name in ("metrics", "params", "validation"):
        np.testing.assert_allclose(four[name], one[name], rtol=1e-4, atol=1e-5)
