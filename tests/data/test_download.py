"""Published sets, fetched from a server on this machine."""

import hashlib
import io
import zipfile

import pytest
from pymatgen.core import Lattice, Structure

from chemeleon2_jax.common.errors import DatasetError
from chemeleon2_jax.common.fetch import MIRROR_VARIABLE, RemoteFile
from chemeleon2_jax.data import datasets
from chemeleon2_jax.data.datasets import load_split
from chemeleon2_jax.data.download import fetch_split
from chemeleon2_jax.data.sources import NAMED_SETS, NamedSet

CONTENT = b"material_id,cif\n" + b"x" * 100 + b",y\n"


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


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "chemeleon2_jax" / "datasets"


def fetch(named_set, split="train"):
    return fetch_split(named_set, split)


def test_downloaded_once(file_server, folder) -> None:
    file_server.answers[URL] = [CONTENT]
    path = fetch(plain_set())
    assert path == folder / "plain" / "train.csv"
    assert path.read_bytes() == CONTENT
    assert fetch(plain_set()) == path
    assert file_server.requests == [(URL, None)]
    assert sorted(p.name for p in path.parent.iterdir()) == [".lock", "train.csv"]


def test_no_room(file_server, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DatasetError, match=r"cannot keep plain in .*XDG_CACHE_HOME"):
        fetch(plain_set())


def test_archives_are_unpacked_and_recorded(file_server, folder) -> None:
    archive = zip_of(train=b"a\n", val=b"b\n")
    file_server.answers[ZIP_URL] = [archive]
    assert fetch(ZIPPED).read_bytes() == b"a\n"
    assert fetch(ZIPPED, "val").read_bytes() == b"b\n"
    assert file_server.requests == [(ZIP_URL, None)]
    record = (folder / "zipped" / "set.zip.sha256").read_text().strip()
    assert record == hashlib.sha256(archive).hexdigest()


def test_unpacked_files_are_checked_ever_after(file_server, folder) -> None:
    file_server.answers[ZIP_URL] = [zip_of(train=b"a\n", val=b"b\n")]
    path = fetch(ZIPPED)
    path.write_bytes(b"changed\n")
    assert fetch(ZIPPED).read_bytes() == b"a\n"
    path.unlink()
    (folder / "zipped" / "set.zip").write_bytes(b"damaged")
    assert fetch(ZIPPED).read_bytes() == b"a\n"
    assert len(file_server.requests) == 2


def test_another_archive_than_was_recorded_is_an_error(file_server, folder) -> None:
    file_server.answers[ZIP_URL] = [zip_of(train=b"a\n", val=b"b\n")]
    fetch(ZIPPED).unlink()
    (folder / "zipped" / "set.zip").unlink()
    file_server.answers[ZIP_URL] = [zip_of(train=b"other\n", val=b"b\n")]
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
def test_files_that_are_no_archives(file_server, content, message) -> None:
    file_server.answers[ZIP_URL] = [content]
    with pytest.raises(DatasetError, match=message):
        fetch(ZIPPED)


def test_an_archive_put_there_by_hand(file_server, folder) -> None:
    (folder / "zipped").mkdir(parents=True)
    (folder / "zipped" / "set.zip").write_bytes(zip_of(train=b"a\n"))
    assert fetch(ZIPPED).read_bytes() == b"a\n"
    assert file_server.requests == []
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


def test_load_split_downloads(file_server, monkeypatch) -> None:
    carbon = Structure(Lattice.cubic(4), ["C"], [[0, 0, 0]]).to(fmt="cif")
    content = f'material_id,cif\na,"{carbon}"\n'.encode()
    file_server.answers[URL] = [content]
    monkeypatch.setattr(datasets, "NAMED_SETS", {"perov-5": plain_set(content)})
    split = load_split("perov_5", "train")
    assert split.crystals.material_ids.tolist() == [b"a"]
