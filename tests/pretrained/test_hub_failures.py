"""Downloads from a hub on this machine that go wrong, and the errors of the user."""

import errno
import os

import huggingface_hub
import pytest
from huggingface_hub import constants, file_download

from chemeleon2_jax.pretrained import hub
from tests.pretrained.hub_server import (
    COMMIT,
    CONTENT,
    FILE,
    KEY,
    NEW_COMMIT,
    OTHER,
    OTHER_SHA256,
    SHA256,
    fetch_fails,
    forget_download,
    go_offline,
)


def test_a_corrupt_body_is_fetched_once_more(server, served, cache) -> None:
    served.bodies = [OTHER, CONTENT]
    assert hub.fetch(KEY).path.read_bytes() == CONTENT
    assert server.num_downloads == 2


def test_a_corrupt_body_in_a_cache_without_links(server, served, cache, monkeypatch) -> None:
    monkeypatch.setattr(file_download, "are_symlinks_supported", lambda folder: False)
    served.bodies = [OTHER, CONTENT]
    fetched = hub.fetch(KEY)
    assert fetched.path.read_bytes() == CONTENT
    assert not fetched.path.is_symlink()


def test_a_corrupt_blob_in_a_cache_without_links(server, cache, monkeypatch) -> None:
    monkeypatch.setattr(file_download, "are_symlinks_supported", lambda folder: False)
    name = "models--" + FILE.repository.replace("/", "--")
    blob = cache.parent / "huggingface" / name / "blobs" / SHA256
    blob.parent.mkdir(parents=True)
    blob.write_bytes(OTHER)
    assert hub.fetch(KEY).path.read_bytes() == CONTENT
    assert server.num_downloads == 1


def test_a_body_that_stays_corrupt_is_an_error(server, served, cache) -> None:
    served.bodies = [OTHER]
    fetch_fails(
        "2 attempts failed: it came corrupt",
        OTHER_SHA256,
        f"expected {SHA256}",
        "curl -L",
    )
    assert server.num_downloads == 2
    assert not (cache / "hub" / "recorded.json").exists()
    served.bodies = []
    assert hub.fetch(KEY).path.read_bytes() == CONTENT  # nothing bad stayed in the cache


def test_a_truncated_body_is_an_error(served, cache) -> None:
    served.bodies, served.length = [CONTENT[:-7]], len(CONTENT) - 7
    served.redirect = True
    fetch_fails(f"should be of size {len(CONTENT)} but has size {len(CONTENT) - 7}")


def test_a_download_goes_on_where_it_broke_off(server, served, cache) -> None:
    served.hang_up_after = [100_000]
    assert hub.fetch(KEY).path.read_bytes() == CONTENT
    assert server.num_downloads == 2


def test_a_server_that_always_hangs_up_is_an_error(served, cache) -> None:
    served.hang_up_after = [0] * 50
    fetch_fails("no connection, or it broke off")


def test_a_slow_server_is_waited_for(served, cache) -> None:
    served.answer_delay, served.block_delay = 0.2, 0.05
    assert hub.fetch(KEY).path.read_bytes() == CONTENT


def test_a_server_that_stalls_is_an_error(served, cache, monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    served.block_delay = 1.0
    fetch_fails("the server is too slow (ReadTimeout", "HF_HUB_DOWNLOAD_TIMEOUT=60")


def test_a_server_that_does_not_answer_is_an_error(served, cache, monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.1)
    served.answer_delay = 0.5
    fetch_fails("the server is too slow (ReadTimeout")


def test_no_network(server, cache) -> None:
    server.shutdown()
    server.server_close()
    target = cache / "hub" / "files" / FILE.path
    url = f"{server.url}/{FILE.repository}/resolve/main/{FILE.path}"
    fetch_fails("no connection", "ConnectError", f"curl -L --create-dirs -o {target} {url}")


def test_offline_and_nothing_cached(server, cache, monkeypatch) -> None:
    go_offline(monkeypatch)
    message = fetch_fails("HF_HUB_OFFLINE is set", str(cache.parent / "huggingface"))
    assert str(cache / "hub" / "files" / FILE.path) in message
    assert server.requests == []


def test_the_file_is_gone(server, cache) -> None:
    server.files[FILE.repository, "v1/vae.ckpt"] = server.files.pop((FILE.repository, FILE.path))
    fetch_fails(f"{FILE.repository} at revision 'main' has no file {FILE.path}: it was renamed")


def test_the_repository_is_gone(server, cache) -> None:
    server.files.clear()
    fetch_fails(f"the hub shows no repository {FILE.repository}", "HF_TOKEN")


def test_the_recorded_commit_is_gone(server, cache) -> None:
    hub.fetch(KEY)
    forget_download(cache)
    server.commits["main"] = NEW_COMMIT
    fetch_fails(f"has no revision {COMMIT!r} any more", "remove the entry 'mp_20_vae'")


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
def test_refusals(served, cache, status, code, expected) -> None:
    served.status, served.error_code = status, code
    fetch_fails(expected, "Fetch it by hand", FILE.path)


def test_a_server_that_is_no_hub(served, cache) -> None:
    served.commit_header = False
    fetch_fails("this is no server of the hub's protocol")


@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, "no room for it in"), (errno.EACCES, "cannot be written")],
)
def test_the_download_cannot_be_kept(cache, monkeypatch, number, expected) -> None:
    def refuse(*args, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    fetch_fails(expected, str(cache.parent / "huggingface"), "set HF_HOME")


def test_the_network_goes_away_before_the_second_attempt(served, cache, monkeypatch) -> None:
    download = huggingface_hub.hf_hub_download

    def download_once(*args, **options):
        go_offline(monkeypatch)
        return download(*args, **options)

    hub.fetch(KEY).path.write_bytes(OTHER)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download_once)
    fetch_fails("HF_HUB_OFFLINE is set")


def test_a_cache_that_cannot_be_written(server, cache) -> None:
    cache.write_text("a file where the folder should be")
    fetch_fails("cannot keep the checkpoint 'mp_20_vae'", "XDG_CACHE_HOME")


def test_a_download_cache_that_cannot_be_written(server, cache) -> None:
    (cache.parent / "huggingface").write_text("a file where the folder should be")
    fetch_fails("cannot download")
