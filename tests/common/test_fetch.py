"""The fetcher, with a server on this machine: resumed, tried again, verified, recorded."""

import hashlib

import pytest

from chemeleon2_jax.common.cache import cache_folder
from chemeleon2_jax.common.errors import DatasetError, EnergyError
from chemeleon2_jax.common.fetch import MIRROR_VARIABLE, RemoteFile, fetch

CONTENT = b"material_id,cif\n" + b"x" * 100_000 + b",y\n"
OTHER = CONTENT[:-1] + b"?"
CHECKSUM = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
CHECKED = RemoteFile("owner/data", "c0ffee", "sets/train.csv", CHECKSUM)
RECORDED = RemoteFile("owner/data", "c0ffee", "sets/train.csv")
URL = "/owner/data/c0ffee/sets/train.csv"


@pytest.fixture
def target(tmp_path):
    return tmp_path / "train.csv"


def get(target, source=CHECKED, **options):
    fetch(source, target, error=DatasetError, **options)
    return target.read_bytes()


def test_downloaded_once(file_server, target):
    file_server.answers[URL] = [CONTENT]
    assert get(target) == CONTENT
    assert get(target) == CONTENT
    assert file_server.requests == [(URL, None)]
    assert list(target.parent.glob("*train*")) == [target]


def test_a_corrupt_download_is_tried_once_more(file_server, target):
    file_server.answers[URL] = [OTHER, CONTENT]
    assert get(target) == CONTENT


def test_a_download_that_stays_corrupt_is_an_error(file_server, target):
    file_server.answers[URL] = [b"<html>blocked</html>"]
    with pytest.raises(DatasetError, match=r"git blob sha1 .*, expected") as caught:
        get(target, otherwise=", or do without")
    message = str(caught.value)
    assert f"curl -L --create-dirs -o {target} {file_server.url}{URL}" in message
    assert message.endswith("used first, or do without")
    assert len(file_server.requests) == 2
    assert not list(target.parent.glob("*train*"))


def test_an_interrupted_download_goes_on(file_server, target):
    file_server.answers[URL] = [(CONTENT, 60_000), CONTENT]
    assert get(target) == CONTENT
    assert file_server.requests == [(URL, None), (URL, "bytes=60000-")]


def test_what_was_left_by_another_run_is_used_if_right(file_server, target):
    file_server.answers[URL] = [CONTENT]
    target.with_name("train.csv.part").write_bytes(CONTENT[:500])
    assert get(target) == CONTENT
    assert file_server.requests == [(URL, "bytes=500-")]


@pytest.mark.parametrize("left", [b"?" * 500, CONTENT + b"more"])
def test_what_was_left_by_another_run_is_dropped_if_wrong(file_server, target, left):
    file_server.answers[URL] = [CONTENT]
    target.with_name("train.csv.part").write_bytes(left)
    assert get(target) == CONTENT
    assert file_server.requests[1] == (URL, None)


def test_a_file_that_has_gone_bad_is_fetched_again(file_server, target):
    file_server.answers[URL] = [CONTENT]
    target.write_bytes(CONTENT[:-1])
    assert get(target) == CONTENT


def test_a_file_put_there_by_hand_needs_no_network(file_server, target):
    target.write_bytes(CONTENT)
    get(target)
    assert file_server.requests == []


def test_not_found(file_server, target):
    with pytest.raises(DatasetError, match=r"HTTP 404.*by hand"):
        get(target)
    assert len(file_server.requests) == 1


def test_server_errors_are_tried_again(file_server, target):
    file_server.answers[URL] = [503, CONTENT]
    assert get(target) == CONTENT


def test_offline(monkeypatch, target):
    monkeypatch.setenv(MIRROR_VARIABLE, "http://127.0.0.1:9")  # nobody listens there
    target.write_bytes(CONTENT)
    assert get(target) == CONTENT
    target.write_bytes(b"damaged")
    with pytest.raises(DatasetError, match=r"no connection .*is corrupt") as caught:
        get(target)
    assert "http://127.0.0.1:9/owner/data" in str(caught.value)
    target.unlink()
    with pytest.raises(DatasetError, match="no connection"):
        get(target)


def test_a_mirror_that_is_no_url(monkeypatch, target):
    monkeypatch.setenv(MIRROR_VARIABLE, "mirror")
    with pytest.raises(DatasetError, match=rf"{MIRROR_VARIABLE} is no URL"):
        get(target)


def test_a_download_that_is_too_large_is_given_up(file_server, target):
    file_server.answers[URL] = [CONTENT]
    with pytest.raises(DatasetError, match="more than 3 bytes"):
        get(target, max_bytes=3)
    assert len(file_server.requests) == 1
    assert not list(target.parent.glob("*train*"))


def test_a_file_without_checksum_is_recorded_when_it_first_comes(file_server, target):
    file_server.answers[URL] = [CONTENT]
    get(target, RECORDED)
    record = target.with_name("train.csv.sha256")
    assert record.read_text() == hashlib.sha256(CONTENT).hexdigest() + "\n"
    target.write_bytes(OTHER)
    assert get(target, RECORDED) == CONTENT
    file_server.answers[URL] = [OTHER]
    target.unlink()
    with pytest.raises(DatasetError, match=r"not the file that came first.*remove the record"):
        get(target, RECORDED)
    record.unlink()
    assert get(target, RECORDED) == OTHER


def test_one_put_there_by_hand_is_recorded_too(file_server, target):
    target.write_bytes(CONTENT)
    get(target, RECORDED)
    assert target.with_name("train.csv.sha256").exists()
    assert file_server.requests == []


def test_content_that_is_wrong_is_not_recorded(file_server, target):
    file_server.answers[URL] = [b"<html>"]
    with pytest.raises(DatasetError, match="2 attempts failed: it is a page"):
        get(target, RECORDED, check=lambda path: "it is a page")
    assert not list(target.parent.glob("*train*"))


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / "energy"
    with (
        pytest.raises(EnergyError, match=r"cannot keep weights in .*XDG_CACHE_HOME.*, or pray"),
        cache_folder(folder, "weights", error=EnergyError, otherwise=", or pray"),
    ):
        pass
