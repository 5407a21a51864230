"""Published files, fetched from a hub on this machine and verified."""

import dataclasses
import errno
import hashlib
import os
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants, file_download

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.pretrained import hub
from chemeleon2_jax.pretrained.hub_download import Fetched
from tests.pretrained.hub_server import (
    COMMIT,
    CONTENT,
    FILE,
    KEY,
    OTHER,
    SHA256,
    Served,
    drop,
    forget_download,
    go_offline,
    record_of,
)

ASKED, DOWNLOADED = (
    f"{method} /{FILE.repository}/resolve/{COMMIT}/{FILE.path}" for method in ("HEAD", "GET")
)
OTHER_SHA256 = hashlib.sha256(OTHER).hexdigest()
NEW_COMMIT = "beef" * 10


@pytest.fixture
def served(server, here):
    """What the server has under KEY; a test changes it."""
    return server.files[FILE.repository, FILE.path]


def fails(*fragments: str, key: str = KEY) -> str:
    with pytest.raises(CheckpointError) as caught:
        hub.fetch(key)
    for fragment in fragments:
        assert fragment in str(caught.value)
    return str(caught.value)


# --- downloads that go well -----------------------------------------------------------------------


@pytest.mark.parametrize("redirect", [False, True])
def test_cold_then_warm(server, served, here, redirect) -> None:
    served.redirect = redirect
    fetched = hub.fetch(KEY)
    assert fetched.path.read_bytes() == CONTENT
    assert (fetched.sha256, fetched.revision) == (SHA256, COMMIT)
    assert record_of(here) == {
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


def test_offline_after_the_first_download(server, here, monkeypatch) -> None:
    fetched = hub.fetch(KEY)
    go_offline(monkeypatch)
    assert hub.fetch(KEY) == fetched


def test_the_first_commit_holds_when_the_branch_moves(server, here) -> None:
    hub.fetch(KEY)
    server.commits["main"] = NEW_COMMIT
    server.commits["first"] = COMMIT
    forget_download(here)
    server.requests.clear()
    assert hub.fetch(KEY).revision == COMMIT
    assert DOWNLOADED in server.requests
    assert not any(NEW_COMMIT in request or "main" in request for request in server.requests)


def test_a_file_without_a_published_checksum_is_recorded_by_its_own(served, here) -> None:
    served.etag = "0123456789abcdef0123456789abcdef01234567"  # git's, of a small file
    assert hub.fetch(KEY).sha256 == SHA256
    assert record_of(here)["sha256"] == SHA256


def test_a_recorded_checksum_holds_where_the_server_names_none(server, served, here) -> None:
    served.etag = "0123456789abcdef0123456789abcdef01234567"
    hub.fetch(KEY)
    forget_download(here)
    server.files[FILE.repository, FILE.path] = Served(OTHER, etag=served.etag)
    fails("2 attempts failed: it came corrupt", f"expected {SHA256}")


def test_a_checksum_in_the_registry_needs_no_record(server, here, monkeypatch) -> None:
    known = dataclasses.replace(FILE, revision=COMMIT, sha256=SHA256, size=len(CONTENT))
    monkeypatch.setattr(hub, "REGISTRY", {KEY: known})
    assert hub.fetch(KEY).sha256 == SHA256
    assert not (here / "hub" / "recorded.json").exists()
    wrong = dataclasses.replace(known, sha256=OTHER_SHA256)
    monkeypatch.setattr(hub, "REGISTRY", {KEY: wrong})
    with pytest.raises(CheckpointError, match="the hub now has another file") as caught:
        hub.fetch(KEY)
    assert "remove the entry" not in str(caught.value)


def test_a_record_of_another_release_does_not_count(server, here, monkeypatch) -> None:
    hub.fetch(KEY)
    newer = dataclasses.replace(FILE, path="v0.0.2/vae.ckpt")
    server.files[FILE.repository, newer.path] = Served(OTHER)
    monkeypatch.setattr(hub, "REGISTRY", {KEY: newer})
    assert hub.fetch(KEY).path.read_bytes() == OTHER
    assert record_of(here)["path"] == newer.path


# --- downloads that go wrong ----------------------------------------------------------------------


def test_a_corrupt_body_is_fetched_once_more(server, served, here) -> None:
    served.bodies = [OTHER, CONTENT]
    assert hub.fetch(KEY).path.read_bytes() == CONTENT
    assert server.num_downloads == 2


def test_also_where_the_cache_has_no_links(server, served, here, monkeypatch) -> None:
    monkeypatch.setattr(file_download, "are_symlinks_supported", lambda folder: False)
    served.bodies = [OTHER, CONTENT]
    fetched = hub.fetch(KEY)
    assert fetched.path.read_bytes() == CONTENT
    assert not fetched.path.is_symlink()


def test_also_where_the_cache_has_a_bad_copy(server, here, monkeypatch) -> None:
    monkeypatch.setattr(file_download, "are_symlinks_supported", lambda folder: False)
    name = "models--" + FILE.repository.replace("/", "--")
    blob = here.parent / "huggingface" / name / "blobs" / SHA256
    blob.parent.mkdir(parents=True)
    blob.write_bytes(OTHER)
    assert hub.fetch(KEY).path.read_bytes() == CONTENT
    assert server.num_downloads == 1


def test_a_body_that_stays_corrupt_is_an_error(server, served, here) -> None:
    served.bodies = [OTHER]
    fails(
        "2 attempts failed: it came corrupt",
        OTHER_SHA256,
        f"expected {SHA256}",
        "curl -L",
    )
    assert server.num_downloads == 2
    assert not (here / "hub" / "recorded.json").exists()
    served.bodies = []
    assert hub.fetch(KEY).path.read_bytes() == CONTENT  # nothing bad stayed in the cache


def test_a_truncated_body_is_an_error(served, here) -> None:
    served.bodies, served.length = [CONTENT[:-7]], len(CONTENT) - 7
    served.redirect = True
    fails(f"should be of size {len(CONTENT)} but has size {len(CONTENT) - 7}")


def test_a_download_goes_on_where_it_broke_off(server, served, here) -> None:
    served.hang_up_after = [100_000]
    assert hub.fetch(KEY).path.read_bytes() == CONTENT
    assert server.num_downloads == 2


def test_a_server_that_always_hangs_up_is_an_error(served, here) -> None:
    served.hang_up_after = [0] * 50
    fails("no connection, or it broke off")


def test_a_slow_server_is_waited_for(served, here) -> None:
    served.answer_delay, served.block_delay = 0.2, 0.05
    assert hub.fetch(KEY).path.read_bytes() == CONTENT


def test_a_server_that_stalls_is_an_error(served, here, monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    served.block_delay = 1.0
    fails("the server is too slow (ReadTimeout", "HF_HUB_DOWNLOAD_TIMEOUT=60")


def test_a_server_that_does_not_answer_is_an_error(served, here, monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.1)
    served.answer_delay = 0.5
    fails("the server is too slow (ReadTimeout")


def test_no_network(server, here) -> None:
    server.shutdown()
    server.server_close()
    target = here / "hub" / "files" / FILE.path
    url = f"{server.url}/{FILE.repository}/resolve/main/{FILE.path}"
    fails("no connection", "ConnectError", f"curl -L --create-dirs -o {target} {url}")


def test_offline_and_nothing_cached(server, here, monkeypatch) -> None:
    go_offline(monkeypatch)
    message = fails("HF_HUB_OFFLINE is set", str(here.parent / "huggingface"))
    assert str(here / "hub" / "files" / FILE.path) in message
    assert server.requests == []


def test_the_file_is_gone(server, here) -> None:
    server.files[FILE.repository, "v1/vae.ckpt"] = server.files.pop((FILE.repository, FILE.path))
    fails(f"{FILE.repository} at revision 'main' has no file {FILE.path}: it was renamed")


def test_the_repository_is_gone(server, here) -> None:
    server.files.clear()
    fails(f"the hub shows no repository {FILE.repository}", "HF_TOKEN")


def test_the_recorded_commit_is_gone(server, here) -> None:
    hub.fetch(KEY)
    forget_download(here)
    server.commits["main"] = NEW_COMMIT
    fails(f"has no revision {COMMIT!r} any more", "remove the entry 'mp_20_vae'")


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (401, "", "HF_TOKEN"),
        (401, "GatedRepo", "asks for your consent"),
        (403, "", "access is refused (HTTP 403)"),
        (404, "", "(HTTP 404)"),
        (429, "", "try again later"),
        (503, "", "out of order (HTTP 503)"),
        (418, "", "HTTP 418"),
    ],
)
def test_refusals(served, here, status, code, expected) -> None:
    served.status, served.error_code = status, code
    fails(expected, "Fetch it by hand", FILE.path)


def test_a_server_that_is_no_hub(served, here) -> None:
    served.commit_header = False
    fails("this is no server of the hub's protocol")


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, "no room for it in"), (errno.EACCES, "cannot be written")],
)
def test_the_download_cannot_be_kept(here, monkeypatch, number, expected) -> None:
    def refuse(*args, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    fails(expected, str(here.parent / "huggingface"), "set HF_HOME")


def test_the_network_goes_away_before_the_second_attempt(served, here, monkeypatch) -> None:
    download = huggingface_hub.hf_hub_download

    def download_once(*args, **options):
        go_offline(monkeypatch)
        return download(*args, **options)

    hub.fetch(KEY).path.write_bytes(OTHER)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download_once)
    fails("HF_HUB_OFFLINE is set")


def test_a_cache_that_cannot_be_written(server, here) -> None:
    here.write_text("a file where the folder should be")
    fails("cannot keep the checkpoint 'mp_20_vae'", "XDG_CACHE_HOME")


def test_a_download_cache_that_cannot_be_written(server, here) -> None:
    (here.parent / "huggingface").write_text("a file where the folder should be")
    fails("cannot download")


# --- files that are not what they were ------------------------------------------------------------


def test_another_file_under_the_recorded_commit(server, served, here) -> None:
    hub.fetch(KEY)
    forget_download(here)
    server.files[FILE.repository, FILE.path] = Served(OTHER)
    message = fails("another file", OTHER_SHA256, SHA256)
    assert f"remove the entry 'mp_20_vae' from {here / 'hub' / 'recorded.json'}" in message
    assert server.num_downloads == 1
    (here / "hub" / "recorded.json").write_text("{}")
    assert hub.fetch(KEY).path.read_bytes() == OTHER


def test_a_cached_file_that_has_gone_bad_is_fetched_again(server, here) -> None:
    path = hub.fetch(KEY).path
    path.write_bytes(OTHER)
    assert hub.fetch(KEY).path.read_bytes() == CONTENT
    assert server.num_downloads == 2


def test_offline_a_cached_file_that_has_gone_bad_is_an_error(here, monkeypatch) -> None:
    hub.fetch(KEY).path.write_bytes(OTHER)
    go_offline(monkeypatch)
    fails("HF_HUB_OFFLINE is set")


def test_offline_a_download_of_another_program_is_used(server, here, monkeypatch) -> None:
    huggingface_hub.hf_hub_download(FILE.repository, FILE.path)
    go_offline(monkeypatch)
    fetched = hub.fetch(KEY)
    assert (fetched.sha256, fetched.revision) == (SHA256, COMMIT)
    assert record_of(here)["revision"] == COMMIT


def test_offline_a_bad_download_of_another_program_is_an_error(server, here, monkeypatch) -> None:
    path = Path(huggingface_hub.hf_hub_download(FILE.repository, FILE.path))
    path.write_bytes(OTHER)
    go_offline(monkeypatch)
    fails("cannot download")
    assert not (here / "hub" / "recorded.json").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"mp_20_vae": {"sha256": "x"}}', '{"mp_20_vae": 1}'])
def test_damaged_records_are_an_error(here, text) -> None:
    (here / "hub").mkdir(parents=True)
    (here / "hub" / "recorded.json").write_text(text)
    fails("recorded.json", "remove it")


# --- files put in place by hand -------------------------------------------------------------------


def test_a_file_put_there_by_hand_is_used_first(server, here) -> None:
    path = drop(here, CONTENT)
    assert hub.fetch(KEY) == Fetched(path, SHA256, "")
    assert server.requests == []


def test_a_wrong_file_put_there_by_hand_is_an_error(server, here) -> None:
    hub.fetch(KEY)
    path = drop(here, OTHER)
    fails(f"{path}, put there by hand, is not the published file", SHA256, "remove the entry")
    path.write_bytes(CONTENT[:-1])
    fails(f"it has {len(CONTENT) - 1} bytes, expected {len(CONTENT)}")
    path.write_bytes(CONTENT)
    assert hub.fetch(KEY) == Fetched(path, SHA256, COMMIT)
