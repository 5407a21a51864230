"""Published files, fetched from a hub on this machine and verified."""

import dataclasses
from pathlib import Path

import huggingface_hub
import pytest

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.pretrained import hub
from chemeleon2_jax.pretrained.hub_download import Fetched
from tests.pretrained.hub_server import (
    COMMIT,
    CONTENT,
    FILE,
    KEY,
    NEW_COMMIT,
    OTHER,
    OTHER_SHA256,
    SHA256,
    Served,
    drop,
    fetch_fails,
    forget_download,
    go_offline,
    record_of,
)

ASKED, DOWNLOADED = (
    f"{method} /{FILE.repository}/resolve/{COMMIT}/{FILE.path}" for method in ("HEAD", "GET")
)


@pytest.mark.parametrize("redirect", [False, True])
def test_cold_then_warm(server, served, cache, redirect) -> None:
    served.redirect = redirect
    fetched = hub.fetch(KEY)
    assert fetched.path.read_bytes() == CONTENT
    assert (fetched.sha256, fetched.revision) == (SHA256, COMMIT)
    assert record_of(cache) == {
        "repository": FILE.repository,
        "path": FILE.path,
        "revision": COMMIT,
        "sha256": SHA256,
        "size": len(CONTENT),
    }
    assert server.requests[0] == f"HEAD /{FILE.repository}/resolve/main/{FILE.path}"
    assert {ASKED} <= set(server.requests)
    server.requests.clear()
    assert hub.fetch(KEY) == fetched
    assert server.requests == []


def test_offline_after_the_first_download(server, cache, monkeypatch) -> None:
    fetched = hub.fetch(KEY)
    go_offline(monkeypatch)
    assert hub.fetch(KEY) == fetched


def test_the_first_commit_holds_when_the_branch_moves(server, cache) -> None:
    hub.fetch(KEY)
    server.commits["main"] = NEW_COMMIT
    server.commits["first"] = COMMIT
    forget_download(cache)
    server.requests.clear()
    assert hub.fetch(KEY).revision == COMMIT
    assert DOWNLOADED in server.requests
    assert not any(NEW_COMMIT in request or "main" in request for request in server.requests)


def test_a_file_without_a_published_checksum_is_recorded_by_its_own(served, cache) -> None:
    served.etag = "0123456789abcdef0123456789abcdef01234567"  # git's, of a small file
    assert hub.fetch(KEY).sha256 == SHA256
    assert record_of(cache)["sha256"] == SHA256


def test_a_recorded_checksum_holds_where_the_server_names_none(server, served, cache) -> None:
    served.etag = "0123456789abcdef0123456789abcdef01234567"
    hub.fetch(KEY)
    forget_download(cache)
    server.files[FILE.repository, FILE.path] = Served(OTHER, etag=served.etag)
    fetch_fails("2 attempts failed: it came corrupt", f"expected {SHA256}")


def test_a_checksum_in_the_registry_needs_no_record(server, cache, monkeypatch) -> None:
    known = dataclasses.replace(FILE, revision=COMMIT, sha256=SHA256, size=len(CONTENT))
    monkeypatch.setattr(hub, "REGISTRY", {KEY: known})
    assert hub.fetch(KEY).sha256 == SHA256
    assert not (cache / "hub" / "recorded.json").exists()
    wrong = dataclasses.replace(known, sha256=OTHER_SHA256)
    monkeypatch.setattr(hub, "REGISTRY", {KEY: wrong})
    with pytest.raises(CheckpointError, match="the hub now has another file") as caught:
        hub.fetch(KEY)
    assert "remove the entry" not in str(caught.value)


def test_a_record_of_another_release_does_not_count(server, cache, monkeypatch) -> None:
    hub.fetch(KEY)
    newer = dataclasses.replace(FILE, path="v0.0.2/vae.ckpt")
    server.files[FILE.repository, newer.path] = Served(OTHER)
    monkeypatch.setattr(hub, "REGISTRY", {KEY: newer})
    assert hub.fetch(KEY).path.read_bytes() == OTHER
    assert record_of(cache)["path"] == newer.path


def test_another_file_under_the_recorded_commit(server, served, cache) -> None:
    hub.fetch(KEY)
    forget_download(cache)
    server.files[FILE.repository, FILE.path] = Served(OTHER)
    message = fetch_fails("another file", OTHER_SHA256, SHA256)
    assert f"remove the entry 'mp_20_vae' from {cache / 'hub' / 'recorded.json'}" in message
    assert server.num_downloads == 1
    (cache / "hub" / "recorded.json").write_text("{}")
    assert hub.fetch(KEY).path.read_bytes() == OTHER


def test_a_cached_file_that_has_gone_bad_is_fetched_again(server, cache) -> None:
    path = hub.fetch(KEY).path
    path.write_bytes(OTHER)
    assert hub.fetch(KEY).path.read_bytes() == CONTENT
    assert server.num_downloads == 2


def test_offline_a_cached_file_that_has_gone_bad_is_an_error(cache, monkeypatch) -> None:
    hub.fetch(KEY).path.write_bytes(OTHER)
    go_offline(monkeypatch)
    fetch_fails("HF_HUB_OFFLINE is set")


def test_offline_a_download_of_another_program_is_used(server, cache, monkeypatch) -> None:
    huggingface_hub.hf_hub_download(FILE.repository, FILE.path)
    go_offline(monkeypatch)
    fetched = hub.fetch(KEY)
    assert (fetched.sha256, fetched.revision) == (SHA256, COMMIT)
    assert record_of(cache)["revision"] == COMMIT


def test_offline_a_bad_download_of_another_program_is_an_error(server, cache, monkeypatch) -> None:
    path = Path(huggingface_hub.hf_hub_download(FILE.repository, FILE.path))
    path.write_bytes(OTHER)
    go_offline(monkeypatch)
    fetch_fails("cannot download")
    assert not (cache / "hub" / "recorded.json").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"mp_20_vae": {"sha256": "x"}}', '{"mp_20_vae": 1}'])
def test_damaged_records_are_an_error(cache, text) -> None:
    (cache / "hub").mkdir(parents=True)
    (cache / "hub" / "recorded.json").write_text(text)
    fetch_fails("recorded.json", "remove it")


def test_a_file_put_there_by_hand_is_used_first(server, cache) -> None:
    path = drop(cache, CONTENT)
    assert hub.fetch(KEY) == Fetched(path, SHA256, "")
    assert server.requests == []


def test_a_wrong_file_put_there_by_hand_is_an_error(server, cache) -> None:
    hub.fetch(KEY)
    path = drop(cache, OTHER)
    fetch_fails(f"{path}, put there by hand, is not the published file", SHA256, "remove the entry")
    path.write_bytes(CONTENT[:-1])
    fetch_fails(f"it has {len(CONTENT) - 1} bytes, expected {len(CONTENT)}")
    path.write_bytes(CONTENT)
    assert hub.fetch(KEY) == Fetched(path, SHA256, COMMIT)
