"""launch/latents.py on a trained VAE."""

import json

import numpy as np
from matplotlib.image import imread

from tests.tiny import ROOT, run_script


def test_tables_numbers_and_figure(tmp_path, tiny_vae, tiny_data):
    done = run_script(
        ROOT / "launch" / "latents.py",
        f"--model={tiny_vae.path}",
        "--num_samples=4",
        "--posterior_scale=0.5",
        f"--json={tmp_path / 'latents.json'}",
        f"--figure={tmp_path / 'latents.png'}",
    )
    assert done.code == 0, done.output
    assert "tolerance of the decoder, 4 crystals" in done.output
    numbers = json.loads((tmp_path / "latents.json").read_text())
    points = numbers["points"]
    assert [p["posterior_scale"] for p in points[::6]] == [0.0, 1.0, 0.5]
    assert [p["level"] for p in points[:6]] == [0.0, 0.02, 0.05, 0.1, 0.2, 0.3]
    assert {len(numbers[name]) for name in ("spread", "posterior_width", "nats_per_atom")} == {8}
    assert (np.array(numbers["spread"]) > 0).all()
    assert imread(tmp_path / "latents.png").ndim == 3


def test_a_model_is_needed():
    done = run_script(ROOT / "launch" / "latents.py")
    assert done.code != 0
    assert "give --model=<run folder of a VAE>" in done.output
