"""The published checkpoints by key: the registry, what is converted, and the table."""

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
from chemeleon2_jax.torch_format.size_tables import published_size_table
from tests.pretrained.hub_server import (
    COMMIT,
    CONTENT,
    FILE,
    KEY,
    OTHER,
    SHA256,
    drop,
    forget_download,
    go_offline,
    record_of,
)


def copy(source: Path, folder: Path) -> None:
    (folder / "weights").write_bytes(source.read_bytes())


def never(source: Path, folder: Path) -> None:
    raise AssertionError("there is nothing to convert")


# --- the registry ---------------------------------------------------------------------------------


def test_six_checkpoints_are_published() -> None:
    keys = [f"{data}_{kind}" for data in ("mp_20", "alex_mp_20") for kind in ("vae", "ldm_base")]
    keys += ["mp_20_ldm_rl", "alex_mp_20_ldm_rl"]
    assert sorted(hub.REGISTRY) == sorted(keys)
    assert len({published.path for published in hub.REGISTRY.values()}) == len(hub.REGISTRY) == 6
    for key, published in hub.REGISTRY.items():
        data, _, kind = key.partition("_20_")
        stage = kind.partition("_")[0]
        assert published.key == key
        assert published.stage == stage
        assert published.path.startswith(f"v0.0.1/{data}_20/{stage}/")
        assert published.path.endswith(".ckpt")
        assert ("rl" in published.path) == key.endswith("rl")
        assert published.vae_heads == 8
        assert len(published_size_table(published.size_table)) == 21


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(CheckpointError, match=r"no published .* 'mp20_vae': did you mean 'mp_20_v"):
        hub.fetch("mp20_vae")
    with pytest.raises(CheckpointError, match="did you mean"):
        hub.converted("alex_mp_20_rl", never)


def test_keys_are_recognised_also_pasted() -> None:
    assert hub.hub_key("mp_20_ldm_rl") == "mp_20_ldm_rl"
    assert hub.hub_key("${hub:mp_20_ldm_rl}") == "mp_20_ldm_rl"
    assert hub.hub_key("logs/run") is None
    with pytest.raises(CheckpointError, match="did you mean 'mp_20_ldm_rl'"):
        hub.hub_key("${hub:mp_20_ldm_rll}")


def test_import_reads_and_asks_nothing() -> None:
    code = (
        "import sys, chemeleon2_jax.pretrained.hub as hub\n"
        "assert not {'huggingface_hub', 'jax', 'pymatgen'} & sys.modules.keys()\n"
        "assert '_entries' not in vars(hub.REGISTRY)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# --- the converted form ---------------------------------------------------------------------------


def test_converted_once_and_used_without_network_and_file(server, here, monkeypatch) -> None:
    folder = hub.converted(KEY, copy)
    assert folder == here / "converted" / f"{KEY}-{SHA256[:12]}-v{CONVERSION_VERSION}"
    assert (folder / "weights").read_bytes() == CONTENT
    forget_download(here)
    go_offline(monkeypatch)
    server.requests.clear()
    assert hub.converted(KEY, never) == folder
    assert server.requests == []


def test_the_file_is_not_hashed_again(here, monkeypatch) -> None:
    folder = hub.converted(KEY, copy)
    hub.fetch(KEY).path.write_bytes(OTHER)
    assert hub.converted(KEY, never) == folder


def test_an_interrupted_conversion_is_made_again(here) -> None:
    def interrupt(source: Path, folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.converted(KEY, interrupt)
    name = f"{KEY}-{SHA256[:12]}-v{CONVERSION_VERSION}"
    assert [p.name for p in (here / "converted").iterdir()] == [f".{KEY}.lock"]
    killed = here / "converted" / f".{name}.0.tmp"  # as a process leaves it that is killed
    (killed / "half").mkdir(parents=True)
    folder = hub.converted(KEY, copy)
    assert [p.name for p in folder.iterdir()] == ["weights"]
    assert not killed.exists()


def test_a_file_system_without_locks(here, monkeypatch) -> None:
    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    no_locks = types.SimpleNamespace(flock=refuse, LOCK_EX=fcntl.LOCK_EX, LOCK_NB=fcntl.LOCK_NB)

    def copy_while_another_does(source: Path, folder: Path) -> None:
        copy(source, folder)
        if not another.exists():
            another.mkdir()
            hub.converted(KEY, copy_while_another_does)

    monkeypatch.setattr(files, "fcntl", no_locks)
    another = here / "converted" / f".{KEY}-{SHA256[:12]}-v{CONVERSION_VERSION}.0.tmp"
    folder = hub.converted(KEY, copy_while_another_does)
    assert (folder / "weights").read_bytes() == CONTENT
    assert another.exists()  # it may be at work
    assert sorted(p.name for p in folder.parent.iterdir()) == sorted(
        [f".{KEY}.lock", another.name, folder.name]
    )


def test_no_room_for_the_converted_form(here) -> None:
    def full(source: Path, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(CheckpointError, match=r"No space left.*XDG_CACHE_HOME"):
        hub.converted(KEY, full)
    assert hub.converted(KEY, copy).is_dir()


def test_a_cache_that_cannot_be_written(server, here) -> None:
    here.mkdir()
    (here / "converted").write_text("a file where the folder should be")
    with pytest.raises(CheckpointError, match=r"cannot keep the converted form.*XDG_CACHE_HOME"):
        hub.converted(KEY, never)


def test_another_version_converts_again(here, monkeypatch) -> None:
    old = hub.converted(KEY, copy)
    monkeypatch.setattr(hub_converted, "CONVERSION_VERSION", CONVERSION_VERSION + 1)
    new = hub.converted(KEY, copy)
    assert new != old
    assert (new / "weights").read_bytes() == CONTENT


def test_without_its_record_the_file_is_asked_for_again(server, here) -> None:
    folder = hub.converted(KEY, copy)
    (here / "hub" / "recorded.json").unlink()
    assert hub.converted(KEY, never) == folder
    assert record_of(here)["sha256"] == SHA256
    assert server.num_downloads == 1


def test_it_is_recorded_once_it_was_converted(server, here) -> None:
    def fail(source: Path, folder: Path) -> None:
        raise CheckpointError(f"{source} is cut short")

    target = drop(here, CONTENT[:-100])
    with pytest.raises(CheckpointError, match="is cut short"):
        hub.converted(KEY, fail)
    target.write_bytes(CONTENT)
    assert (hub.converted(KEY, copy) / "weights").read_bytes() == CONTENT
    assert record_of(here)["sha256"] == SHA256
    assert record_of(here)["revision"] == ""
    target.unlink()
    assert hub.fetch(KEY).revision == COMMIT  # the same file, from the branch
    assert record_of(here)["revision"] == COMMIT


# --- processes of their own -----------------------------------------------------------------------


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
    assert "100%" in errors  # the progress bar, which that variable asks for without a terminal
    assert list((tmp_path / "other" / "home" / "hub").glob("models--*"))
    again = start(tmp_path / "other", server, HF_HUB_OFFLINE="1")
    assert again.communicate(timeout=60)[0] == output


# --- the table ------------------------------------------------------------------------------------


def test_the_table_says_what_is_here(server, here) -> None:
    before = {line.split()[0]: line for line in hub.describe().splitlines()}
    assert list(before)[2:-1] == list(hub.REGISTRY)
    assert before[KEY].split()[-3:] == ["-", "-", "no"]
    assert server.requests == []
    hub.fetch(KEY)
    assert hub.describe().splitlines()[2].endswith("  downloaded")
    hub.converted(KEY, copy)
    row = hub.describe().splitlines()[2]
    assert row.endswith("  downloaded, converted")
    for text in ("0.3 MB", SHA256[:12], COMMIT[:12], FILE.path):
        assert text in row
    assert FILE.repository in hub.describe()
    drop(here, CONTENT, hub.REGISTRY["mp_20_ldm_rl"].path)
    rows = {line.split()[0]: line for line in hub.describe().splitlines()}
    assert rows["mp_20_ldm_rl"].endswith("  downloaded")
