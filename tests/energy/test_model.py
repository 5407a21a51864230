"""Models by name, and errors of models that cannot be had."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from chemeleon2_jax.common.errors import EnergyError
from chemeleon2_jax.energy import interface
from chemeleon2_jax.energy.model import energy_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr(interface.importlib.util, "find_spec", lambda name: None)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("nequix", "pip install --no-deps nequix"),
        ("chgnet", "the extra chgnet"),
        ("mace", "the extra mace"),
        ("ase:elsewhere.code:Calculator", "package elsewhere is not installed"),
    ],
)
def test_a_missing_package_is_named(nothing_installed, name, hint):
    with pytest.raises(EnergyError, match=hint):
        energy_model(name)


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(EnergyError, match=r"did you mean 'chgnet'\? Known: nequix"):
        energy_model("chgnett")


@pytest.mark.parametrize(
    "name", ["ase:", "ase:ase.calculators.lj", "ase::LennardJones", "ase:__main__:A"]
)
def test_a_path_without_a_calculator(name):
    with pytest.raises(EnergyError, match="write ase:<module>:<class or function>"):
        energy_model(name)


def test_mace_needs_processes(monkeypatch):
    monkeypatch.setattr(interface.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(EnergyError, match="worker processes only"):
        energy_model("mace")


def test_mace_of_another_scale():
    with pytest.raises(EnergyError, match="medium-omat-0 predicts energies of other"):
        energy_model("mace", model="medium-omat-0")


def test_modules_are_light():
    """No module imports a potential or its dependencies."""
    names = [path.stem for path in (ROOT / "chemeleon2_jax" / "energy").glob("[!_]*.py")]
    assert "nequix" in names
    modules = [f"chemeleon2_jax.energy.{name}" for name in names] + [
        "chemeleon2_jax.rewards.energy"
    ]
    heavy = {"ase", "torch", "chgnet", "mace", "nequix", "equinox", "e3nn_jax", "matscipy"}
    code = (
        f"import sys, importlib\nfor name in {modules}: importlib.import_module(name)\n"
        f"assert not {heavy} & sys.modules.keys(), {heavy} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)
    assert importlib.util.find_spec("chemeleon2_jax.energy") is not None
