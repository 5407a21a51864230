"""Converted forms of published checkpoints: made once, by one process, and whole."""

import errno
import fcntl
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from chemeleon2_jax.common import atomic_files as files
from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.pretrained import hub, hub_converted
from chemeleon2_jax.pretrained.hub_converted import CONVERSION_VERSION
from tests.pretrained.hub_server import (
    COMMIT,
    CONTENT,
    FILE,
    KEY,
    OTHER,
    SHA256,
    convert_nothing,
    copy_weights,
    drop,
    forget_download,
    go_offline,
    record_of,
)


def test_converted_once_and_used_without_network_and_file(server, cache, monkeypatch) -> None:
    folder = hub.converted(KEY, copy_weights)
    assert folder == cache / "converted" / f"{KEY}-{SHA256[:12]}-v{CONVERSION_VERSION}"
    assert (folder / "weights").read_bytes() == CONTENT
    forget_download(cache)
    go_offline(monkeypatch)
    server.requests.clear()
    assert hub.converted(KEY, convert_nothing) == folder
    assert server.requests == []


def test_the_file_is_not_hashed_again(cache, monkeypatch) -> None:
    folder = hub.converted(KEY, copy_weights)
    hub.fetch(KEY).path.write_bytes(OTHER)
    assert hub.converted(KEY, convert_nothing) == folder


def test_an_interrupted_conversion_is_made_again(cache) -> None:
    def interrupt(source: Path, folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.converted(KEY, interrupt)
    name = f"{KEY}-{SHA256[:12]}-v{CONVERSION_VERSION}"
    assert [p.name for p in (cache / "converted").iterdir()] == [f".{KEY}.lock"]
    killed = cache / "converted" / f".{name}.0.tmp"  # a killed process leaves it
    (killed / "half").mkdir(parents=True)
    folder = hub.converted(KEY, copy_weights)
    assert [p.name for p in folder.iterdir()] == ["weights"]
    assert not killed.exists()


def test_a_file_system_without_locks(cache, monkeypatch) -> None:
    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    no_locks = types.SimpleNamespace(flock=refuse, LOCK_EX=fcntl.LOCK_EX, LOCK_NB=fcntl.LOCK_NB)

    def copy_while_another_does(source: Path, folder: Path) -> None:
        copy_weights(source, folder)
        if not another.exists():
            another.mkdir()
            hub.converted(KEY, copy_while_another_does)

    monkeypatch.setattr(files, "fcntl", no_locks)
    another = cache / "converted" / f".{KEY}-{SHA256[:12]}-v{CONVERSION_VERSION}.0.tmp"
    folder = hub.converted(KEY, copy_while_another_does)
    assert (folder / "weights").read_bytes() == CONTENT
    assert another.exists()  # its process may be at work
    assert sorted(p.name for p in folder.parent.iterdir()) == sorted(
        [f".{KEY}.lock", another.name, folder.name]
    )


def test_no_room_for_the_converted_form(cache) -> None:
    def full(source: Path, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match=r"No space left.*XDG_CACHE_HOME"):
        hub.converted(KEY, full)
    assert hub.converted(KEY, copy_weights).is_dir()


def test_a_cache_that_cannot_be_written(server, cache) -> None:
    cache.mkdir()
    (cache / "converted").write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match=r"cannot keep the converted form.*XDG_CACHE_HOME"):
        hub.converted(KEY, convert_nothing)


def test_another_version_converts_again(cache, monkeypatch) -> None:
    old = hub.converted(KEY, copy_weights)
    monkeypatch.setattr(hub_converted, "CONVERSION_VERSION", CONVERSION_VERSION + 1)
    new = hub.converted(KEY, copy_weights)
    assert new != old
    assert (new / "weights").read_bytes() == CONTENT


def test_without_a_record_the_file_is_looked_for_again(server, cache) -> None:
    folder = hub.converted(KEY, copy_weights)
    (cache / "hub" / "recorded.json").unlink()
    assert hub.converted(KEY, convert_nothing) == folder
    assert record_of(cache)["sha256"] == SHA256
    assert server.num_downloads == 1


def test_a_file_is_recorded_after_its_conversion(server, cache) -> None:
    def fail(source: Path, folder: Path) -> None:
        raise CheckpointError(f"{source} is cut short")

    target = drop(cache, CONTENT[:-100])
    with pytest.raises(CheckpointError, match="is cut short"):
        hub.converted(KEY, fail)
    target.write_bytes(CONTENT)
    assert (hub.converted(KEY, copy_weights) / "weights").read_bytes() == CONTENT
    assert record_of(cache)["sha256"] == SHA256
    assert record_of(cache)["revision"] == ""
    target.unlink()
    assert hub.fetch(KEY).revision == COMMIT  # the same file, from the branch
    assert record_of(cache)["revision"] == COMMIT


CONVERT = """
import sys, time
from pathlib import Path
from chemeleon2_jax.pretrained import hub, hub_converted
from chemeleon2_jax.pretrained.hub_converted import CONVERSION_VERSION

def convert(source, folder):
    with open(sys.argv[2], "a") as log:
        log.write("x")
    time.sleep(0.3)
    (folder / "weights").write_bytes(source.read_bytes())

print(hub.converted(sys.argv[1], convert))
"""


def start(tmp_path, server, **environment):
    variables = {
        "XDG_CACHE_HOME": str(tmp_path),
        "HF_HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": server.url,
        "PYTHONPATH": str(Path(hub.__file__).parents[2]),
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.Popen(
        [sys.executable, "-c", CONVERT, KEY, str(tmp_path / "log")],
        env={**inherited, **variables, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_convert_once(server, tmp_path) -> None:
    processes = [start(tmp_path, server) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert (Path(outputs[0][0].strip()) / "weights").read_bytes() == CONTENT
    assert (tmp_path / "log").read_text() == "x"
    assert server.num_downloads == 1


def test_settings_of_the_environment(server, tmp_path) -> None:
    server.files[FILE.repository, FILE.path].token = "hf_secret"
    (tmp_path / "other").mkdir()
    (tmp_path / "third").mkdir()
    refused = start(tmp_path, server)
    allowed = start(tmp_path / "other", server, HF_TOKEN="hf_secret", TQDM_POSITION="-1")
    offline = start(tmp_path / "third", server, HF_TOKEN="hf_secret", HF_HUB_OFFLINE="1")
    assert "HF_TOKEN" in refused.communicate(timeout=60)[1]
    assert "HF_HUB_OFFLINE is set" in offline.communicate(timeout=60)[1]
    output, errors = allowed.communicate(timeout=60)
    assert Path(output.strip()).is_dir(), errors
    assert "100%" in errors  # the progress bar, which TQDM_POSITION shows without a terminal
    assert list((tmp_path / "other" / "home" / "hub").glob("models--*"))
    again = start(tmp_path / "other", server, HF_HUB_OFFLINE="1")
    assert again.communicate(timeout=60)[0] == output
