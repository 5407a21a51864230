import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from chemeleon2_jax.common.errors import CheckpointError
from chemeleon2_jax.training.checkpoint_reader import open_checkpoint
from chemeleon2_jax.training.checkpoint_writer import CheckpointWriter, write_checkpoint
from chemeleon2_jax.training.checksums import checksum, tree_checksums
from chemeleon2_jax.training.plain_trees import flat_names
from chemeleon2_jax.training.progress import Progress


def trees() -> dict[str, dict]:
    """Two items; every array but the scalar is stored as its plain bytes."""
    draw = np.random.default_rng(0).standard_normal
    return {
        "params": {
            "encoder": {"kernel": draw((40, 30)).astype(np.float32), "bias": draw(200)},
            "half": draw((30, 30)).astype(ml_dtypes.bfloat16),
        },
        "train": {"moments": draw((50, 20)).astype(np.float32), "step": np.int32(7)},
    }


@pytest.fixture(params=["run", "folder"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint of a run, and one outside of a run, as the converter writes it."""
    if request.param == "folder":
        write_checkpoint(tmp_path / "model", items=trees(), meta={"width": 3})
        return tmp_path / "model"
    with CheckpointWriter(tmp_path, monitor="val", mode="min") as writer:
        writer.save(Progress(step=1), items=trees(), meta={"width": 3})
    return tmp_path / "checkpoints" / "step_1"


def places(folder: Path) -> Iterator[tuple[str, str, Path, int, int]]:
    """Yield item, array, file, start and length of the bytes of each large array."""
    for item, tree in trees().items():
        for name, array in flat_names(tree).items():
            content = array.tobytes()
            for file in (folder / item).rglob("*") if array.ndim else ():
                start = file.read_bytes().find(content) if file.is_file() else -1
                if start >= 0:
                    yield item, name, file, start, len(content)


def test_every_changed_array_is_named(saved: Path) -> None:
    found = list(places(saved))
    assert {(item, name) for item, name, *_ in found} == {
        ("params", "encoder/kernel"),
        ("params", "encoder/bias"),
        ("params", "half"),
        ("train", "moments"),
    }
    for item, name, file, start, length in found:
        whole = file.read_bytes()
        flipped, zeroed, last = bytearray(whole), bytearray(whole), bytearray(whole)
        flipped[start + length // 2] ^= 1
        zeroed[start : start + length] = bytes(length)
        last[start + length - 1] ^= 128
        for damaged in (flipped, zeroed, last):
            file.write_bytes(damaged)
            with pytest.raises(CheckpointError) as caught:
                open_checkpoint(saved).restore(item)
            text = str(caught.value)
            assert f"{saved / item} is damaged: the array {name} " in text
            assert "\n" not in text
            open_checkpoint(saved, verify=False).restore(item)
        file.write_bytes(whole)
        open_checkpoint(saved).restore(item)


def test_any_changed_byte_is_noticed_or_harmless(saved: Path) -> None:
    expected = flat_names(open_checkpoint(saved).restore("params"))
    draw = np.random.default_rng(1)
    noticed = 0
    for file in [f for f in (saved / "params").rglob("*") if f.is_file()]:
        whole = file.read_bytes()
        for place in draw.choice(len(whole), min(12, len(whole)), replace=False):
            changed = bytearray(whole)
            changed[place] ^= 1 << int(draw.integers(8))
            file.write_bytes(changed)
            try:
                arrays = flat_names(open_checkpoint(saved).restore("params"))
            except CheckpointError:
                noticed += 1
            else:
                assert arrays.keys() == expected.keys()
                for name, array in arrays.items():
                    assert array.tobytes() == expected[name].tobytes(), (file, place)
        file.write_bytes(whole)
    assert noticed


def test_arrays_of_another_checkpoint_are_noticed(saved: Path, tmp_path: Path) -> None:
    other = trees()
    other["params"]["half"] = other["params"]["half"] + 1
    other["params"]["extra"] = np.zeros(3)
    del other["train"]["moments"]
    write_checkpoint(tmp_path / "other", items=other, meta={})
    for item in ("params", "train"):
        shutil.rmtree(saved / item)
        shutil.copytree(tmp_path / "other" / item, saved / item)
    with pytest.raises(CheckpointError, match=r"the array (half|extra) has"):
        open_checkpoint(saved).restore("params")
    with pytest.raises(CheckpointError, match="the array moments is missing"):
        open_checkpoint(saved).restore("train")


def test_checkpoint_without_checksums_opens_with_one_note(
    saved: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(saved / "checksums")
    with caplog.at_level(logging.INFO, logger="absl"):
        for item in ("params", "train", "params"):
            open_checkpoint(saved).restore(item)
    notes = [r.getMessage() for r in caplog.records if "no checksums" in r.getMessage()]
    assert notes == [
        f"{saved} has no checksums (an older version wrote it): its arrays are not checked"
    ]


@pytest.mark.parametrize("content", ["{ not json", "[]", '{"params": {"half": 3}}'])
def test_broken_checksums_are_one_error(saved: Path, content: str) -> None:
    (saved / "checksums" / "metadata").write_text(content)
    with pytest.raises(CheckpointError, match="checksums"):
        open_checkpoint(saved).restore("params")


def test_changed_meta_is_said(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_checkpoint(saved)
    assert not caplog.records
    (saved / "meta" / "metadata").write_text(json.dumps({"width": 4}))
    assert open_checkpoint(saved).meta == {"width": 4}
    assert f"{saved / 'meta' / 'metadata'} has changed since it was written" in caplog.text


def test_checksum_knows_shape_and_dtype() -> None:
    array = np.arange(6, dtype=np.float32)
    same = [array, jnp.asarray(array), np.stack([array, array], 1)[:, 0]]
    assert len({tree_checksums({"a": a})["a"] for a in same}) == 1
    others = [array.reshape(2, 3), array.reshape(3, 2), array.view(np.int32), -array, array[:0]]
    assert len({checksum(a) for a in [array, *others]}) == 6


def test_sharded_arrays_have_the_checksum_of_the_whole() -> None:
    mesh = jax.make_mesh((1,), ("data",))
    array = np.arange(8, dtype=np.float32)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    placed = jax.device_put(array, sharding)
    assert tree_checksums({"a": placed}) == tree_checksums({"a": array})
