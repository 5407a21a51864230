import os
import subprocess
import sys
from pathlib import Path

CODE = """
import jax
from chemeleon2_jax.training.compilation import enable_compilation_cache
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
print(enable_compilation_cache())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: x + 1)(1.0)
"""


def run(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")}
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-c", CODE],
        env=inherited | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": root} | environment,
        capture_output=True,
        text=True,
        check=True,
    )


def test_programs_are_kept_silently(tmp_path: Path) -> None:
    folder = tmp_path / "chemeleon2_jax" / "xla"
    for _ in range(2):
        process = run(tmp_path)
        assert process.stdout.strip() == str(folder)
        assert process.stderr == ""
    assert list(folder.iterdir())


def test_users_own_setting_is_left_alone(tmp_path: Path) -> None:
    own = tmp_path / "own"
    assert run(tmp_path, JAX_COMPILATION_CACHE_DIR=str(own)).stdout.strip() == str(own)
    assert run(tmp_path, JAX_ENABLE_COMPILATION_CACHE="0").stdout.strip() == "None"
    assert not (tmp_path / "chemeleon2_jax").exists()


def test_folder_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "chemeleon2_jax").write_text("a file")
    assert run(tmp_path).stdout.strip() == "None"
