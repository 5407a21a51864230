"""Models by name: published keys, PyTorch files, folders, and names of no model."""

from __future__ import annotations

import numpy as np
import pytest

import chemeleon2_jax as c2
from chemeleon2_jax.common.cache import cache_dir
from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.inference.api import LDMModel, PredictorModel, VAEModel
from chemeleon2_jax.pretrained import hub
from chemeleon2_jax.pretrained.loading import open_model, vae_of
from chemeleon2_jax.torch_format.size_tables import published_size_table
from chemeleon2_jax.torch_format.torch_writer import write_torch_file
from tests.pretrained.hub_server import Served, go_offline, serving, use_hub
from tests.torch_format import original_files


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A hub with a small VAE and a small LDM in place of the published ones; like those, the LDM
    does not state the heads of its VAE.
    """
    contents = {
        "mp_20_vae": original_files.vae_content(),
        "mp_20_ldm_rl": original_files.ldm_content(),
    }
    del contents["mp_20_ldm_rl"]["hyper_parameters"]["vae"]
    with serving() as server:
        for key, content in contents.items():
            write_torch_file(tmp_path / "served.ckpt", content)
            entry = hub.lookup(key)
            body = (tmp_path / "served.ckpt").read_bytes()
            server.files[entry.repository, entry.path] = Served(body)
        use_hub(server, monkeypatch, tmp_path / "home")
        monkeypatch.chdir(tmp_path)
        yield server


def test_a_published_key(server, monkeypatch):
    vae = c2.load_model("mp_20_vae")
    assert isinstance(vae, VAEModel)
    assert vae.parts.sizes.decoder.nhead == 4
    assert server.num_downloads == 1
    before = len(server.requests)
    c2.load_model("mp_20_vae")  # already converted: no request
    assert len(server.requests) == before
    server.shutdown()
    go_offline(monkeypatch)
    again = c2.load_model("${hub:mp_20_vae}")
    np.testing.assert_array_equal(
        again.parts.params["quant"]["kernel"][...], vae.parts.params["quant"]["kernel"][...]
    )


def test_a_published_ldm_samples_with_its_size_table(server):
    ldm = c2.load_model("mp_20_ldm_rl")
    assert isinstance(ldm, LDMModel)
    np.testing.assert_array_equal(ldm.parts.size_table, published_size_table("mp-20"))
    assert ldm.parts.vae.sizes.decoder.nhead == hub.lookup("mp_20_ldm_rl").vae_heads
    assert vae_of(open_model("mp_20_ldm_rl")).sizes == ldm.parts.vae.sizes


def test_a_file_that_is_no_model_can_be_replaced(server):
    """A file with the right checksum and the wrong content is an error, and leaves no folder."""
    entry = hub.lookup("mp_20_vae")
    good = server.files[entry.repository, entry.path]
    ldm = server.files[entry.repository, hub.lookup("mp_20_ldm_rl").path]
    for wrong in (Served(b"version https://git-lfs.github.com"), ldm):
        server.files[entry.repository, entry.path] = wrong
        with pytest.raises(CheckpointError, match=r"LFS|train_ldm"):
            c2.load_model("mp_20_vae")
        assert not any("mp_20_vae-" in p.name for p in (cache_dir() / "converted").iterdir())
    server.commits["main"] = "0" * 40  # a new commit with the right file
    server.files[entry.repository, entry.path] = good
    assert isinstance(c2.load_model("mp_20_vae"), VAEModel)


def test_averages_and_sizes_of_a_published_model(server, tmp_path):
    entry = hub.lookup("mp_20_ldm_base")
    write_torch_file(
        tmp_path / "a.ckpt", original_files.with_averages(original_files.ldm_content())
    )
    server.files[entry.repository, entry.path] = Served((tmp_path / "a.ckpt").read_bytes())
    raw, averages = (c2.load_model("mp_20_ldm_base", ema=ema).parts for ema in (False, True))
    difference = averages.params["final"]["bias"][...] - raw.params["final"]["bias"][...]
    np.testing.assert_allclose(difference, 1.0, rtol=1e-6)
    assert len(c2.load_model("mp_20_ldm_base", size_table="mp-120").parts.size_table) == 121


def test_a_pasted_key_is_no_folder(server, tmp_path, caplog):
    (tmp_path / "mp_20_vae").mkdir()
    assert isinstance(c2.load_model("${hub:mp_20_vae}"), VAEModel)
    with pytest.raises(CheckpointError, match="neither a run folder"):
        c2.load_model("mp_20_vae")


def test_a_damaged_converted_form(server):
    c2.load_model("mp_20_vae")
    (folder,) = (cache_dir() / "converted").glob("mp_20_vae-*")
    (folder / "meta" / "metadata").write_text("{")
    with pytest.raises(CheckpointError, match=rf"remove {folder}"):
        c2.load_model("mp_20_vae")


def test_assumptions_are_logged(tmp_path, caplog):
    content = original_files.ldm_content()
    del content["state_dict"]["latent_std"]
    write_torch_file(tmp_path / "a.ckpt", content)
    model = c2.load_model(tmp_path / "a.ckpt")
    assert "no latent_std: 1 is used" in caplog.text
    assert model.meta.source.notes == ("it holds no latent_std: 1 is used",)


def test_a_folder_of_files_names_them(tmp_path):
    original_files.write(tmp_path, "vae")
    with pytest.raises(CheckpointError, match=r"name a file in it: vae\.ckpt"):
        c2.load_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("vae", VAEModel), ("ldm_conditional", LDMModel), ("predictor", PredictorModel)],
)
def test_a_pytorch_file_by_any_name(name, kind, tmp_path):
    path = original_files.write(tmp_path, name)
    renamed = path.rename(tmp_path / "weights (copy).bin")
    assert isinstance(c2.load_model(renamed), kind)
    assert isinstance(c2.load_model(str(renamed)), kind)


def test_options_of_pytorch_files(tmp_path):
    write_torch_file(tmp_path / "ldm.ckpt", original_files.ldm_content(with_vae=False))
    vae = original_files.write(tmp_path, "vae")
    ldm = c2.load_model(tmp_path / "ldm.ckpt", vae=vae)
    assert ldm.vae.parts.sizes == c2.load_model(vae).parts.sizes


def test_options_of_pytorch_files_are_for_those_alone(tiny_ldm, tmp_path):
    for options in ({"ema": True}, {"vae": "x"}, {"size_table": "mp-20"}):
        with pytest.raises(CheckpointError):
            open_model(tiny_ldm.path, **options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mp_20_vea", "mp_20_vae"),
        ("${hub:mp_20_vea}", "mp_20_vae"),
        ("nowhere/model.ckpt", "there is no nowhere"),
        ("with\0null", "cannot be opened|there is no"),
    ],
)
def test_other_names(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        c2.load_model(name)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999])
def test_an_incomplete_download(share, tmp_path):
    path = original_files.write(tmp_path, "vae")
    body = path.read_bytes()
    path.write_bytes(body[: int(share * len(body))])
    with pytest.raises(CheckpointError, match=r"vae\.ckpt"):
        c2.load_model(path)
