"""The command that converts, as its users run it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from chemeleon2_jax.inference.api import load_model
from chemeleon2_jax.pretrained.hub import REGISTRY
from tests.torch_format import original_files

# A machine without PyTorch, and without whatever else a file may name.
_WITHOUT = """
import runpy, sys
for name in ("torch", "lightning", "omegaconf", "peft", "src"):
    sys.modules[name] = None
runpy.run_module("chemeleon2_jax.convert", run_name="__main__", alter_sys=True)
"""


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _WITHOUT, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_there_and_back(tmp_path):
    path = original_files.write(tmp_path, "ldm_lora")
    done = run(f"--input={path}", f"--output={tmp_path / 'made/here/model'}")
    assert done.returncode == 0, done.stderr
    assert "LDM: " in done.stdout
    assert "wrote" in done.stdout
    folder = tmp_path / "made/here/model"
    assert load_model(folder).parts.sizes.lora is not None
    back = tmp_path / "back.ckpt"
    done = run(f"--input={folder}", "--format=torch", "--merge_lora", f"--output={back}")
    assert done.returncode == 0, done.stderr
    latents = [np.ones((3, original_files.LATENT), np.float32)]
    ours, theirs = (load_model(p).denoise(latents, [7])[0] for p in (folder, back))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_averages_and_sizes(tmp_path):
    from chemeleon2_jax.torch_format.torch_writer import write_torch_file

    path = tmp_path / "model.ckpt"
    write_torch_file(path, original_files.with_averages(original_files.ldm_content()))
    out = tmp_path / "model"
    done = run(f"--input={path}", "--ema", "--size_table=mp-120", f"--output={out}")
    assert done.returncode == 0, done.stderr
    parts = load_model(out).parts
    assert len(parts.size_table) == 121
    plain = load_model(path).parts
    difference = parts.params["final"]["bias"][...] - plain.params["final"]["bias"][...]
    np.testing.assert_allclose(difference, 1.0, rtol=1e-6)


def test_list():
    done = run("--list")
    assert done.returncode == 0, done.stderr
    for key, entry in REGISTRY.items():
        assert key in done.stdout
        assert entry.path in done.stdout


def test_vae_for_an_ldm_without_one(tmp_path):
    from chemeleon2_jax.torch_format.torch_writer import write_torch_file

    write_torch_file(tmp_path / "ldm.ckpt", original_files.ldm_content(with_vae=False))
    arguments = (f"--input={tmp_path / 'ldm.ckpt'}", f"--output={tmp_path / 'out'}")
    done = run(*arguments)
    assert done.returncode == 1
    assert "--vae" in done.stderr
    assert not (tmp_path / "out").exists()
    vae = original_files.write(tmp_path, "vae")
    done = run(*arguments, f"--vae={vae}")
    assert done.returncode == 0, done.stderr
    assert load_model(tmp_path / "out").vae.parts.sizes == load_model(vae).parts.sizes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --input"),
        (("--input=x",), "give --output"),
        (("--input=mp_20_vea", "--output=OUT"), "'mp_20_vae'"),
        (("--input=FILE", "--output=OUT", "--size_table=mp-21"), "mp-21"),
        (("--input=FILE", "--output=FILE"), "is there"),
        (("--input=FILE", "--output=FULL", "--overwrite", "--format=torch"), "is a folder"),
        (("--input=FILE", "--output=FULL", "--overwrite"), "no checkpoint folder"),
        (("--input=FILE", "--output=FULL"), "something in it"),
        (("--input=FILE", "--output=OUT", "--merge_lora"), "no LoRA adapters"),
        (("--input=TEXT", "--output=OUT"), "text.ckpt"),
        (("--input=FULL", "--output=OUT"), "neither a run folder"),
        (("--input=FILE", "--output=OUT", "--format=onnx"), "onnx"),
    ],
)
def test_errors_in_one_line(arguments, message, tmp_path):
    names = {"OUT": tmp_path / "out", "FULL": tmp_path / "full", "TEXT": tmp_path / "text.ckpt"}
    names["FILE"] = original_files.write(tmp_path, "vae")
    names["FULL"].mkdir()
    (names["FULL"] / "thesis.tex").write_text("precious")
    names["TEXT"].write_text("<html>")
    filled = []
    for argument in arguments:
        flag, _, value = argument.partition("=")
        filled.append(f"{flag}={names.get(value, value)}" if value else flag)
    done = run(*filled)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert (names["FULL"] / "thesis.tex").read_text() == "precious"
    assert names["FILE"].is_file()
    assert not names["OUT"].exists()


def test_overwrite(tmp_path):
    vae, ldm = (original_files.write(tmp_path, name) for name in ("vae", "ldm"))
    out = f"--output={tmp_path / 'out'}"
    assert run(f"--input={vae}", out).returncode == 0
    assert run(f"--input={ldm}", out).returncode == 1
    done = run(f"--input={ldm}", out, "--overwrite")
    assert done.returncode == 0, done.stderr
    assert load_model(tmp_path / "out").meta.ldm is not None
    meta = json.loads((tmp_path / "out/meta/metadata").read_text())
    assert meta["source"]["file"] == "ldm.ckpt"
