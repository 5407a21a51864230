r"""Convert weights from the PyTorch original, and back.

    python -m chemeleon2_jax.convert --input=model.ckpt --output=ckpts/model
    python -m chemeleon2_jax.convert --input=mp_20_ldm_base --output=ckpts/mp_20_ldm_base
    python -m chemeleon2_jax.convert --input=logs/train_ldm/runs/<run> --format=torch \
        --output=model.ckpt
    python -m chemeleon2_jax.convert --list

The input is a PyTorch .ckpt, a run folder, a checkpoint folder or the key of a published
checkpoint. Code that a .ckpt names is not run, and PyTorch is not needed.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from chemeleon2_jax.common.errors import ConfigError
from chemeleon2_jax.common.paths import expand_path, printable
from chemeleon2_jax.runs import command_line as cli

flags.DEFINE_string("input", "", "Model to convert.")
flags.DEFINE_string("output", "", "New folder, or with --format=torch new .ckpt file.")
flags.DEFINE_enum("format", "orbax", ["orbax", "torch"], "Format of the output.")
flags.DEFINE_string("vae", "", "VAE of an LDM whose .ckpt lacks the VAE or its number of heads.")
flags.DEFINE_bool("ema", False, "Use the moving averages of a .ckpt, not its raw weights.")
flags.DEFINE_bool("merge_lora", False, "Merge LoRA adapters into the weights.")
flags.DEFINE_string("size_table", "", "Size table of a .ckpt: mp-20 (default) or mp-120.")
flags.DEFINE_bool("overwrite", False, "Replace an existing --output.")
flags.DEFINE_bool("verify", True, "Compare the arrays of checkpoints with their checksums.")
flags.DEFINE_bool("list", False, "List the published checkpoints and exit.")


def main() -> int:
    """Convert as the flags say; return the exit code."""
    values = flags.FLAGS
    if values.list:
        from chemeleon2_jax.pretrained import hub

        print(hub.describe())
        return 0
    for name in ("input", "output"):
        if not getattr(values, name):
            raise ConfigError(f"give --{name}; see python -m chemeleon2_jax.convert --help")
    output = expand_path(values.output)
    _check_output(output, is_file=values.format == "torch")

    # Late: importing JAX takes seconds.
    from chemeleon2_jax.pretrained.loading import open_model
    from chemeleon2_jax.torch_format.files import write_orbax, write_torch

    model = open_model(
        values.input,
        vae=values.vae,
        ema=values.ema,
        size_table=values.size_table,
        verify=values.verify,
    )
    write = write_torch if values.format == "torch" else write_orbax
    report = write(model, output, merge_lora=values.merge_lora)
    print(report.describe())
    print(f"wrote {printable(output)}")
    return 0


def _check_output(path: Path, *, is_file: bool) -> None:
    """Refuse to overwrite without --overwrite."""
    if is_file and path.is_dir():
        raise ConfigError(f"--output: {path} is a folder; name a file, as in {path / 'model.ckpt'}")
    if path.is_dir() and any(path.iterdir()) and not flags.FLAGS.overwrite:
        raise ConfigError(
            f"--output: the folder {path} is not empty; choose another name or --overwrite"
        )
    if path.is_file() and not flags.FLAGS.overwrite:
        raise ConfigError(f"--output: {path} exists; choose another name or --overwrite")


if __name__ == "__main__":
    cli.run(main)
