"""The convert command as a process."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from chemeleon2_jax.inference.api import load_model
from chemeleon2_jax.pretrained.hub import REGISTRY
from tests.torch_format import original_files

# As on a machine without PyTorch and other packages that a file may name. The commands are forks of
# one process, which has imported the slow modules.
_WITHOUT = """
import json, os, runpy, sys
for name in ("torch", "lightning", "omegaconf", "peft", "src"):
    sys.modules[name] = None
import chemeleon2_jax.pretrained.loading, chemeleon2_jax.torch_format.files
for arguments, *paths in json.loads(sys.argv[1]):
    pid = os.fork()
    if not pid:
        for stream, path in enumerate(paths, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
        sys.argv[1:] = arguments
        runpy.run_module("chemeleon2_jax.convert", run_name="__main__", alter_sys=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def run(*commands: tuple[str | Path, ...]) -> list[Done]:
    """Run commands one after the other, each in a process of its own."""
    with TemporaryDirectory() as folder:
        paths = [(f"{folder}/{i}.out", f"{folder}/{i}.err") for i in range(len(commands))]
        jobs = [(list(map(str, c)), *pair) for c, pair in zip(commands, paths, strict=True)]
        parent = subprocess.run(
            [sys.executable, "-c", _WITHOUT, json.dumps(jobs)],
            stdout=subprocess.PIPE,
            text=True,
            timeout=240,
            check=True,
        )
        codes = map(int, parent.stdout.split())
        return [
            Done(code, Path(out).read_text(), Path(err).read_text())
            for code, (out, err) in zip(codes, paths, strict=True)
        ]


def test_there_and_back(tmp_path):
    path = original_files.write(tmp_path, "ldm_lora")
    folder, back = tmp_path / "made/here/model", tmp_path / "back.ckpt"
    there, again = run(
        (f"--input={path}", f"--output={folder}"),
        (f"--input={folder}", "--format=torch", "--merge_lora", f"--output={back}"),
    )
    assert there.returncode == 0, there.stderr
    assert "LDM: " in there.stdout
    assert "wrote" in there.stdout
    assert load_model(folder).parts.sizes.lora is not None
    assert again.returncode == 0, again.stderr
    latents = [np.ones((3, original_files.LATENT), np.float32)]
    direct, through_torch = (load_model(p).denoise(latents, [7])[0] for p in (folder, back))
    np.testing.assert_allclose(direct, through_torch, atol=1e-5)


def test_averages_and_sizes(tmp_path):
    from chemeleon2_jax.torch_format.torch_writer import write_torch_file

    path = tmp_path / "model.ckpt"
    write_torch_file(path, original_files.with_averages(original_files.ldm_content()))
    out = tmp_path / "model"
    (done,) = run((f"--input={path}", "--ema", "--size_table=mp-120", f"--output={out}"))
    assert done.returncode == 0, done.stderr
    parts = load_model(out).parts
    assert len(parts.size_table) == 121
    plain = load_model(path).parts
    difference = parts.params["final"]["bias"][...] - plain.params["final"]["bias"][...]
    np.testing.assert_allclose(difference, 1.0, rtol=1e-6)


def test_list():
    (done,) = run(("--list",))
    assert done.returncode == 0, done.stderr
    for key, entry in REGISTRY.items():
        assert key in done.stdout
        assert entry.path in done.stdout


def test_vae_for_an_ldm_without_one(tmp_path):
    from chemeleon2_jax.torch_format.torch_writer import write_torch_file

    write_torch_file(tmp_path / "ldm.ckpt", original_files.ldm_content(with_vae=False))
    vae = original_files.write(tmp_path, "vae")
    arguments = (f"--input={tmp_path / 'ldm.ckpt'}", f"--output={tmp_path / 'out'}")
    without, done = run(arguments, (*arguments, f"--vae={vae}"))
    assert without.returncode == 1
    assert "--vae" in without.stderr
    assert done.returncode == 0, done.stderr  # nothing was in its way
    assert load_model(tmp_path / "out").vae.parts.sizes == load_model(vae).parts.sizes


MISTAKES = {
    (): "give --input",
    ("--input=x",): "give --output",
    ("--input=mp_20_vea", "--output=OUT"): "'mp_20_vae'",
    ("--input=FILE", "--output=OUT", "--size_table=mp-21"): "mp-21",
    ("--input=FILE", "--output=FILE"): "vae.ckpt exists",
    ("--input=FILE", "--output=FULL", "--overwrite", "--format=torch"): "is a folder",
    ("--input=FILE", "--output=FULL", "--overwrite"): "no checkpoint folder",
    ("--input=FILE", "--output=FULL"): "is not empty",
    ("--input=FILE", "--output=OUT", "--merge_lora"): "no LoRA adapters",
    ("--input=TEXT", "--output=OUT"): "text.ckpt",
    ("--input=FULL", "--output=OUT"): "neither a run folder",
    ("--input=FILE", "--output=OUT", "--format=onnx"): "onnx",
}


def test_mistakes_are_one_line_and_change_nothing(tmp_path):
    names = {"OUT": tmp_path / "out", "FULL": tmp_path / "full", "TEXT": tmp_path / "text.ckpt"}
    names["FILE"] = original_files.write(tmp_path, "vae")
    names["FULL"].mkdir()
    (names["FULL"] / "thesis.tex").write_text("precious")
    names["TEXT"].write_text("<html>")

    def fill(argument):
        flag, _, value = argument.partition("=")
        return f"{flag}={names.get(value, value)}" if value else flag

    done = run(*(tuple(map(fill, arguments)) for arguments in MISTAKES))
    for command, (arguments, message) in zip(done, MISTAKES.items(), strict=True):
        assert command.returncode == 1, arguments
        assert message in command.stderr, arguments
        assert "Traceback" not in command.stderr, arguments
    assert (names["FULL"] / "thesis.tex").read_text() == "precious"
    assert names["FILE"].is_file()
    assert not names["OUT"].exists()


def test_overwrite(tmp_path):
    vae, ldm = (original_files.write(tmp_path, name) for name in ("vae", "ldm"))
    out = f"--output={tmp_path / 'out'}"
    done = run(
        (f"--input={vae}", out), (f"--input={ldm}", out), (f"--input={ldm}", out, "--overwrite")
    )
    assert [command.returncode for command in done] == [0, 1, 0], done
    assert load_model(tmp_path / "out").meta.ldm is not None
    meta = json.loads((tmp_path / "out/meta/metadata").read_text())
    assert meta["source"]["file"] == "ldm.ckpt"
