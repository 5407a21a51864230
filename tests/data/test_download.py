"""Fetching published sets, from a server of our own."""

import hashlib
import io
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pymatgen.core import Lattice, Structure

from chemeleon2_jax.common.errors import DatasetError
from chemeleon2_jax.data import datasets
from chemeleon2_jax.data.datasets import load_split
from chemeleon2_jax.data.download import fetch_split
from chemeleon2_jax.data.sources import MIRROR_VARIABLE, NAMED_SETS, NamedSet, RemoteFile

CONTENT = b"material_id,cif\n" + b"x" * 100_000 + b",y\n"


def blob_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def plain_set(content: bytes = CONTENT) -> NamedSet:
    file = RemoteFile("owner/data", "c0ffee", "sets/train.csv", blob_sha1(content))
    return NamedSet("plain", {"train": file})


ZIPPED = NamedSet(
    "zipped",
    {
        "train": RemoteFile("owner/data", "main", "train.csv"),
        "val": RemoteFile("owner/data", "main", "val.csv"),
    },
    RemoteFile("owner/data", "main", "release/set.zip", is_lfs=True),
)
URL = "/owner/data/c0ffee/sets/train.csv"
ZIP_URL = "/owner/data/main/release/set.zip"


def zip_of(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"set/{name}.csv", content)
    return stream.getvalue()


class Server(ThreadingHTTPServer):
    """Serves `answers`: for a path, one answer after another; the last one is repeated.

    An answer is the whole content, an error status, or (content, bytes to send before it hangs up).
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, list] = {}
        self.requests: list[tuple[str, str | None]] = []


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        answers = self.server.answers.get(self.path, [404])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, int):
            self.send_error(answer)
            return
        content, sent = answer if isinstance(answer, tuple) else (answer, len(answer))
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if wanted and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:sent])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv(MIRROR_VARIABLE, f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        yield server
        server.shutdown()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "chemeleon2_jax" / "datasets"


def fetch(named_set, split="train"):
    return fetch_split(named_set, split, progress=False)


def test_downloaded_once(server, folder) -> None:
    server.answers[URL] = [CONTENT]
    path = fetch(plain_set())
    assert path == folder / "plain" / "train.csv"
    assert path.read_bytes() == CONTENT
    assert fetch(plain_set()) == path
    assert server.requests == [(URL, None)]
    assert sorted(p.name for p in path.parent.iterdir()) == [".lock", "train.csv"]


def test_a_corrupt_download_is_tried_once_more(server) -> None:
    server.answers[URL] = [CONTENT[:-1] + b"?", CONTENT]
    assert fetch(plain_set()).read_bytes() == CONTENT


def test_a_download_that_stays_corrupt_is_an_error(server, folder) -> None:
    server.answers[URL] = [b"<html>blocked</html>"]
    with pytest.raises(DatasetError, match=r"git blob sha1 .*, expected") as caught:
        fetch(plain_set())
    message = str(caught.value)
    assert f"127.0.0.1:{server.server_port}{URL}" in message
    assert f"curl -L -o {folder}/plain/train.csv http" in message
    assert "data.data_dir" in message
    assert len(server.requests) == 2
    assert not (folder / "plain" / "train.csv").exists()


def test_an_interrupted_download_goes_on(server) -> None:
    server.answers[URL] = [(CONTENT, 60_000), CONTENT]
    assert fetch(plain_set()).read_bytes() == CONTENT
    assert server.requests == [(URL, None), (URL, "bytes=60000-")]


def test_what_was_left_by_another_run_is_used_if_right(server, folder) -> None:
    server.answers[URL] = [CONTENT]
    (folder / "plain").mkdir(parents=True)
    (folder / "plain" / "train.csv.part").write_bytes(CONTENT[:500])
    assert fetch(plain_set()).read_bytes() == CONTENT
    assert server.requests == [(URL, "bytes=500-")]


@pytest.mark.parametrize("left", [b"?" * 500, CONTENT + b"more"])
def test_what_was_left_by_another_run_is_dropped_if_wrong(server, folder, left) -> None:
    server.answers[URL] = [CONTENT]
    (folder / "plain").mkdir(parents=True)
    (folder / "plain" / "train.csv.part").write_bytes(left)
    assert fetch(plain_set()).read_bytes() == CONTENT
    assert server.requests[1] == (URL, None)


def test_a_file_that_has_gone_bad_is_fetched_again(server) -> None:
    server.answers[URL] = [CONTENT]
    path = fetch(plain_set())
    path.write_bytes(CONTENT[:-1])
    assert fetch(plain_set()).read_bytes() == CONTENT


def test_a_file_put_there_by_hand_needs_no_network(server, folder) -> None:
    (folder / "plain").mkdir(parents=True)
    (folder / "plain" / "train.csv").write_bytes(CONTENT)
    fetch(plain_set())
    assert server.requests == []


def test_not_found(server) -> None:
    with pytest.raises(DatasetError, match=r"HTTP 404") as caught:
        fetch(plain_set())
    assert "by hand" in str(caught.value)
    assert len(server.requests) == 1


def test_server_errors_are_tried_again(server) -> None:
    server.answers[URL] = [503, CONTENT]
    assert fetch(plain_set()).read_bytes() == CONTENT


def test_offline(server, monkeypatch, folder) -> None:
    server.answers[URL] = [CONTENT]
    path = fetch(plain_set())
    monkeypatch.setenv(MIRROR_VARIABLE, "http://127.0.0.1:9")
    assert fetch(plain_set()) == path
    path.write_bytes(b"damaged")
    with pytest.raises(DatasetError, match=r"no connection .*is corrupt") as caught:
        fetch(plain_set())
    assert "http://127.0.0.1:9/owner/data" in str(caught.value)
    path.unlink()
    with pytest.raises(DatasetError, match="no connection"):
        fetch(plain_set())


def test_a_mirror_that_is_no_url(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(MIRROR_VARIABLE, "mirror")
    with pytest.raises(DatasetError, match=rf"{MIRROR_VARIABLE} is no URL"):
        fetch(plain_set())


def test_no_room(server, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DatasetError, match=r"cannot keep plain in .*XDG_CACHE_HOME"):
        fetch(plain_set())


def test_archives_are_unpacked_and_recorded(server, folder) -> None:
    archive = zip_of(train=b"a\n", val=b"b\n")
    server.answers[ZIP_URL] = [archive]
    assert fetch(ZIPPED).read_bytes() == b"a\n"
    assert fetch(ZIPPED, "val").read_bytes() == b"b\n"
    assert server.requests == [(ZIP_URL, None)]
    record = (folder / "zipped" / "set.zip.sha256").read_text().strip()
    assert record == hashlib.sha256(archive).hexdigest()


def test_unpacked_files_are_checked_ever_after(server, folder) -> None:
    server.answers[ZIP_URL] = [zip_of(train=b"a\n", val=b"b\n")]
    path = fetch(ZIPPED)
    path.write_bytes(b"changed\n")
    assert fetch(ZIPPED).read_bytes() == b"a\n"
    path.unlink()
    (folder / "zipped" / "set.zip").write_bytes(b"damaged")
    assert fetch(ZIPPED).read_bytes() == b"a\n"
    assert len(server.requests) == 2


def test_another_archive_than_was_recorded_is_an_error(server, folder) -> None:
    server.answers[ZIP_URL] = [zip_of(train=b"a\n", val=b"b\n")]
    fetch(ZIPPED).unlink()
    (folder / "zipped" / "set.zip").unlink()
    server.answers[ZIP_URL] = [zip_of(train=b"other\n", val=b"b\n")]
    with pytest.raises(DatasetError, match=r"sha256 .* but .*set.zip.sha256"):
        fetch(ZIPPED)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git-lfs pointer"),
        (b"no zip at all", "not a whole zip"),
        (zip_of(train=b"a" * 1000)[:-10], "not a whole zip"),
        (zip_of(train=b"a" * 1000).replace(b"aaaa", b"bbbb", 1), "train.csv is corrupt"),
        (zip_of(validation=b"a\n"), "should hold one train.csv, but holds set/validation.csv"),
    ],
)
def test_archives_that_are_none(server, content, message) -> None:
    server.answers[ZIP_URL] = [content]
    with pytest.raises(DatasetError, match=message):
        fetch(ZIPPED)


def test_an_archive_put_there_by_hand(server, folder) -> None:
    (folder / "zipped").mkdir(parents=True)
    (folder / "zipped" / "set.zip").write_bytes(zip_of(train=b"a\n"))
    assert fetch(ZIPPED).read_bytes() == b"a\n"
    assert server.requests == []
    assert (folder / "zipped" / "set.zip.sha256").exists()


def test_splits_that_are_not_published() -> None:
    with pytest.raises(DatasetError, match=r"alex_mp_20_bandgap .* without a test split"):
        fetch(NAMED_SETS["alex_mp_20_bandgap"], "test")
    with pytest.raises(DatasetError, match="no split 'tets'"):
        fetch(NAMED_SETS["mp-20"], "tets")


def test_the_published_places(monkeypatch) -> None:
    monkeypatch.delenv(MIRROR_VARIABLE, raising=False)
    assert NAMED_SETS["mp-20"].files["train"].url == (
        "https://raw.githubusercontent.com/txie-93/cdvae/"
        "f857f598d6f6cca5dc1ea0582d228f12dcc2c2ea/data/mp_20/train.csv"
    )
    archive = NAMED_SETS["alex-mp-20"].archive
    assert archive is not None
    assert archive.url == (
        "https://media.githubusercontent.com/media/microsoft/mattergen/main/"
        "data-release/alex-mp/alex_mp_20.zip"
    )


def test_load_split_downloads(server, monkeypatch) -> None:
    carbon = Structure(Lattice.cubic(4), ["C"], [[0, 0, 0]]).to(fmt="cif")
    content = f'material_id,cif\na,"{carbon}"\n'.encode()
    server.answers[URL] = [content]
    monkeypatch.setattr(datasets, "NAMED_SETS", {"perov-5": plain_set(content)})
    split = load_split("perov_5", "train", progress=False)
    assert split.crystals.material_ids.tolist() == [b"a"]
