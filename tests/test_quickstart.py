"""The table at the end of the quickstart."""

import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from chemeleon2_jax.common.errors import ConfigError
from launch import quickstart_report as quickstart


@pytest.fixture(scope="module")
def salt():
    return Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0] * 3, [0.5] * 3]
    )


def as_arrays(structure):
    return np.array(structure.atomic_numbers), structure.frac_coords, structure.lattice.matrix


def test_crystals_that_could_not_be_built_have_failed(salt):
    shares = quickstart.check_shares([salt, salt], [as_arrays(salt)] * 20, num_samples=4)
    for check in ("valid", "covalent"):
        assert (shares[check].generated, shares[check].reference) == (0.5, 1.0)
    assert shares["covalent"].random < 0.5


def test_density_error_is_of_valid_crystals(salt):
    crowded = salt.copy()
    crowded.scale_lattice(salt.volume / 1000)
    error = quickstart.density_error([salt, crowded], 0.03)
    assert error == pytest.approx(abs(8 / 5.64**3 - 0.03))
    assert np.isnan(quickstart.density_error([crowded], 0.03))


def test_samples_are_read_back(salt, tmp_path):
    with pytest.raises(ConfigError, match="no samples in"):
        quickstart.read_samples(tmp_path)
    for broken in ('{"num_sam', "{}"):
        (tmp_path / quickstart.REPORT_FILE).write_text(broken)
        with pytest.raises(ConfigError, match="no samples in"):
            quickstart.read_samples(tmp_path)
    (tmp_path / quickstart.REPORT_FILE).write_text('{"num_samples": 3}')
    with gzip.open(tmp_path / quickstart.STRUCTURES_FILE, "wt") as file:
        json.dump([salt.as_dict()], file)
    structures, asked = quickstart.read_samples(tmp_path)
    assert (structures, asked) == ([salt], 3)


def test_nothing_built(salt, tmp_path, monkeypatch, capsys):
    (tmp_path / quickstart.REPORT_FILE).write_text('{"num_samples": 3}')
    with gzip.open(tmp_path / quickstart.STRUCTURES_FILE, "wt") as file:
        json.dump([], file)
    monkeypatch.setattr(quickstart, "reference_crystals", lambda _: [as_arrays(salt)] * 3)
    monkeypatch.setattr(quickstart, "best_values", lambda _: {"val/total_loss": 0.5})
    values = SimpleNamespace(
        vae_run="vae", ldm_run="ldm", samples=str(tmp_path), rl_run="", seconds=[]
    )
    monkeypatch.setattr(quickstart.flags, "FLAGS", values)
    assert quickstart.main() == 0
    summary = json.loads((tmp_path / quickstart.SUMMARY_FILE).read_text())
    assert (summary["built"], summary["valid"]["generated"]) == (0, 0.0)
    assert (tmp_path / quickstart.PICTURE_FILE).stat().st_size
    assert "0%" in capsys.readouterr().out


def test_report_says_what_is(capsys, tmp_path):
    summary = {
        "VAE": {"val/total_loss": 0.1234, "val/match_rate": 0.71},
        "latent diffusion": {"val/total_loss": 0.5},
        "asked": 64,
        "built": 61,
        "valid": {"generated": 0.9, "reference": 1.0, "random": 0.8},
        "covalent": {"generated": 0.55, "reference": 1.0, "random": 0.03},
        "rewarded": {
            "target": 0.03,
            "density_error": [0.0456, 0.0123],
            "valid": {"generated": 0.8},
        },
        "seconds": {"train VAE": 93.4},
    }
    quickstart.print_report(summary, files={"pictures": tmp_path / "crystals.png"})
    printed = capsys.readouterr().out
    for text in (
        "0.1234",
        "71%",
        "64",
        "61",
        "90%",
        "55%",
        "100%",
        "3%",
        "93 s",
        "0.0456 -> 0.0123",
        "90% -> 80%",
    ):
        assert text in printed
    assert str(tmp_path / "crystals.png") in printed.replace("\n", "")
