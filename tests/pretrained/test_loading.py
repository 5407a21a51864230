"""Models of checkpoints: their weights, and the errors of broken ones."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chemeleon2_jax import load_model
from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.inference.api import LDMModel, VAEModel
from chemeleon2_jax.models.abstract import count_parameters
from chemeleon2_jax.models.vae import VAE
from chemeleon2_jax.pretrained.loading import ldm_of, open_model, vae_of
from chemeleon2_jax.training.checkpoint_reader import open_checkpoint
from tests.tiny import by_name

REMOVED = object()


def equal(params, saved) -> bool:
    """Whether parameters are those of a checkpoint's item, bit for bit."""
    arrays, expected = by_name(params), by_name(saved)
    return arrays.keys() == expected.keys() and all(
        arrays[name].tobytes() == expected[name].tobytes() for name in arrays
    )


@pytest.fixture
def copy(tmp_path, tiny_ldm):
    """A function that changes the meta in a copy of the LDM's best checkpoint."""
    folder = shutil.copytree(tiny_ldm.path / "checkpoints" / "best", tmp_path / "copy")

    def change(**entries):
        path = folder / "meta" / "metadata"
        meta = json.loads(path.read_text()) | entries
        path.write_text(json.dumps({k: v for k, v in meta.items() if v is not REMOVED}))
        return folder

    return change


def test_vae_is_the_saved_one(tiny_vae):
    model = open_model(tiny_vae.path)
    parts = vae_of(model)
    assert equal(parts.params, open_checkpoint(tiny_vae.path).restore("params"))
    assert (model.meta.stage, parts.sizes.encoder.d_model) == ("train_vae", 16)
    assert isinstance(parts.module(parts.params), VAE)
    assert count_parameters(parts.params) == sum(v.size for v in by_name(parts.params).values())


def test_vae_inside_an_ldm(tiny_vae, tiny_ldm):
    model = open_model(tiny_ldm.path)
    inside, alone = vae_of(model), vae_of(open_model(tiny_vae.path))
    assert equal(inside.params, alone.params)
    assert (inside.sizes, model.meta.stage) == (alone.sizes, "train_ldm")


def test_ldm_needs_nothing_but_its_own_folder(copy, tiny_ldm):
    here, there = (ldm_of(open_model(path)) for path in (tiny_ldm.path, copy()))
    assert equal(there.params, here.params)
    assert equal(there.vae.params, here.vae.params)
    assert there.size_table.tolist() == [0, 0, 20, 0, 0, 12, 0, 0, 9]
    assert there.latent_std == open_model(tiny_ldm.path).meta.ldm.latent_std
    assert there.diffusion.num_steps == 1000


def test_run_folder_means_its_best_checkpoint(tmp_path, tiny_vae):
    run = shutil.copytree(tiny_vae.path, tmp_path / "run", symlinks=True)
    steps = sorted((run / "checkpoints").glob("step_*"))
    best = (run / "checkpoints" / "best").resolve()
    assert best in [step.resolve() for step in steps]
    parts = vae_of(open_model(run))
    assert equal(parts.params, open_checkpoint(best).restore("params"))
    for name in ("checkpoints", "checkpoints/best", f"checkpoints/{best.name}"):
        assert equal(vae_of(open_model(str(run / name))).params, parts.params)


@pytest.mark.parametrize(("weights", "item"), [("ema", "ema"), ("raw", "params")])
def test_sample_weights_are_honoured(copy, weights, item):
    folder = copy(sample_weights=weights)
    checkpoint = open_checkpoint(folder)
    assert not equal(checkpoint.restore("ema"), checkpoint.restore("params"))
    assert equal(ldm_of(open_model(folder)).params, checkpoint.restore(item))


def test_computes_in_another_dtype(tiny_vae):
    parts = vae_of(open_model(tiny_vae.path), dtype=jnp.bfloat16)
    assert parts.module(parts.params).decoder.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(parts.params)} == {np.dtype("float32")}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"sample_weights": "average"},
            "'sample_weights'.*'average' is none of ema, raw",
        ),
        ({"sample_weights": REMOVED}, "its meta has no entry 'sample_weights'"),
        ({"latent_std": REMOVED}, "its meta has no entry 'latent_std'"),
        ({"latent_std": "wide"}, "wrong entry 'latent_std'"),
        ({"latent_std": None}, "wrong entry 'latent_std'"),
        ({"size_table": [0, 0]}, "wrong entry 'size_table'"),
        ({"size_table": "many"}, "wrong entry 'size_table'"),
        ({"size_table": [0, -1, 3]}, "wrong entry 'size_table'"),
        ({"diffusion": {"target": "score"}}, "wrong entry 'diffusion'"),
        ({"diffusion": {"schedule": "none"}}, "wrong entry 'diffusion'"),
        ({"dit": None}, "wrong entry 'dit'"),
        ({"dit": {"new": 1}}, "wrong entry 'dit'"),
        ({"dit": {"num_heads": 7}}, "sizes that fit no model.*7 attention heads"),
        ({"dit": {"hidden_size": 24}}, "does not fit the model"),
        ({"latent_std": 0.0}, "wrong entry 'latent_std'"),
        ({"latent_std": "1.5"}, "wrong entry 'latent_std'"),
        ({"latent_std": float("nan")}, "wrong entry 'latent_std'"),
        ({"dit": {"depth": 2**70}}, "wrong entry 'dit'"),
        ({"vae": REMOVED}, "its meta has no entry 'vae'"),
        ({"vae": {}}, "wrong entry 'vae'"),
        ({"vae": 3}, "wrong entry 'vae'"),
        ({"dit": REMOVED}, "was written by stage 'train_ldm', which this version cannot open"),
        ({"stage": "train_vae"}, "does not fit the model"),
    ],
)
def test_meta_that_is_wrong(copy, entries, message):
    folder = copy(**entries)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value)


def test_a_vae_generates_nothing(tiny_vae):
    with pytest.raises(CheckpointError, match="checkpoint of train_vae, which cannot generate"):
        ldm_of(open_model(tiny_vae.path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_run", "there is no no_such_run"),
        ("", "its name is empty"),
        ("~no_such_user/run", "cannot be opened"),
        ("x" * 5000, "cannot be opened"),
        ("{folder}", "neither a run folder with a whole checkpoint"),
        ("{folder}/checkpoints", "neither a run folder with a whole checkpoint"),
        ("{folder}/notes.txt", "not a file of torch.save"),
        ("{folder}/notes.txt/best", "there is no|cannot be read"),
    ],
)
def test_names_of_no_model(tmp_path, name, message):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(CheckpointError, match=message):
        load_model(name.format(folder=tmp_path))


def test_every_file_of_a_checkpoint_is_needed_or_noticed(copy):
    """A checkpoint with any file cut short or gone opens as before, or is a CheckpointError."""
    folder = copy()
    whole = load_model(folder)
    assert isinstance(whole, LDMModel)
    files = [p for item in ("ema", "meta") for p in (folder / item).rglob("*") if p.is_file()]
    single = [p for p in files if p.name in ("_METADATA", "manifest.ocdbt", "metadata")]
    noticed = set()
    for damage, paths in (("cut", files), ("gone", single)):
        for path in paths:
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2]) if damage == "cut" else path.unlink()
            try:
                parts = load_model(folder).parts
            except CheckpointError:
                noticed.add((path.relative_to(folder).parts[0], damage))
            else:
                assert equal(parts.params, whole.parts.params), (path, damage)
            path.write_bytes(content)
    assert noticed == {(item, damage) for item in ("ema", "meta") for damage in ("cut", "gone")}


def test_kinds_of_models(tiny_vae, tiny_ldm):
    assert isinstance(load_model(tiny_vae.path), VAEModel)
    assert isinstance(load_model(str(tiny_ldm.path)), LDMModel)
