import os
from pathlib import Path

import pytest

from chemeleon2_jax.common.errors import CheckpointError, ConfigError
from chemeleon2_jax.common.paths import check_checkpoint_path, expand_path, printable


def test_home_and_variables(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("PLACE", "/data")
    for text, expected in {
        "~": "/home/me",
        "~/x y": "/home/me/x y",
        "$PLACE/a": "/data/a",
        "${PLACE}s/a": "/datas/a",
        "a/~b/[/red]": "a/~b/[/red]",
        "": ".",
        "gs:/bucket": "gs:/bucket",
        "./a://b": "a:/b",
        "100$": "100$",
    }.items():
        assert expand_path(text) == Path(expected)
    literal = tmp_path / "$PLACE"
    literal.mkdir()
    assert expand_path(str(literal)) == literal == expand_path(literal)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("gs://bucket/run", "gs://bucket/run is a URL: gs:// is not supported; give a path"),
        ("s3://a", "s3:// is not supported"),
        ("$NOBODY_SET_THIS/x", "the variable NOBODY_SET_THIS is not set"),
        ("~nobody_has_this_name/x", "cannot be opened: "),
        ("a\0b", "null"),
        ("a" * 5000, "File name too long"),
    ],
)
def test_no_paths(text, reason):
    with pytest.raises(ConfigError, match=reason):
        expand_path(text)
    with pytest.raises(CheckpointError, match=reason):
        expand_path(text, error=CheckpointError)


def test_names_that_are_not_utf8_can_be_printed():
    name = os.fsdecode(b"caf\xe9.cif")
    assert printable(name) == "caf\\xe9.cif"
    assert printable(Path("ä/[/x]")) == "ä/[/x]"
    assert printable("half \ud800") == "half \\ud800"


@pytest.mark.parametrize("name", ["runs[1]", "what?", "a*b", os.fsdecode(b"caf\xe9")])
def test_checkpoints_are_not_written_where_they_could_not_be_read(tmp_path, name):
    with pytest.raises(CheckpointError, match=r"checkpoints cannot be written to .*rename"):
        check_checkpoint_path(tmp_path / name / "x", error=CheckpointError)
    check_checkpoint_path(tmp_path / "a b" / "ä}", error=CheckpointError)
