"""List the commands: `python -m chemeleon2_jax`."""

import sys

from chemeleon2_jax.common.version import __version__

COMMANDS = {
    "train": "train a VAE, a latent diffusion model or a predictor, or fine-tune with rewards",
    "sample": "generate crystals with a trained model",
    "evaluate": "evaluate crystals: validity, uniqueness, novelty, density",
    "convert": "convert PyTorch checkpoints of Chemeleon2, and back",
}


def main() -> int:
    """Print the commands."""
    print(f"chemeleon2_jax {__version__}\n")
    for name, purpose in COMMANDS.items():
        print(f"  python -m chemeleon2_jax.{name:10} {purpose}")
    print("\n--help explains the flags of a command.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
