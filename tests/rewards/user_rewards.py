"""Rewards as users write them: functions of a list of Structures. Workers import this module."""

from __future__ import annotations

import os
import time
from pathlib import Path


def number_of_sites(structures, *, scale=1.0):
    return [scale * len(structure) for structure in structures]


def fails_for_caesium(structures):
    if any("Cs" in str(structure.composition) for structure in structures):
        raise RuntimeError("no caesium, please")
    return [1.0] * len(structures)


def fails_for_five(structures):
    """Fails by the number of atoms, which a request fixes."""
    if any(len(structure) == 5 for structure in structures):
        raise RuntimeError("no perovskites, please")
    return [1.0] * len(structures)


def heaviest_element(structures):
    return [float(max(structure.atomic_numbers)) for structure in structures]


def nan_for_caesium(structures):
    return [float("nan") if "Cs" in str(structure.composition) else 2.0 for structure in structures]


def sleeps_for_caesium(structures):
    if any("Cs" in str(structure.composition) for structure in structures):
        time.sleep(3600)
    return [1.0] * len(structures)


def dies_for_caesium(structures):
    if any("Cs" in str(structure.composition) for structure in structures):
        os._exit(3)
    return [1.0] * len(structures)


def always_fails(structures):
    raise ValueError("nothing is good enough")


def too_few(structures):
    return []


def not_numbers(structures):
    return ["good"] * len(structures)


def columns(structures):
    return [[1.0] for _ in structures]


def share_of_its_list(structures):
    """Needs all crystals at once."""
    return [len(structure) / sum(map(len, structures)) for structure in structures]


def notes_its_process(structures, *, folder):
    (Path(folder) / str(os.getpid())).touch()
    return [1.0] * len(structures)


class Counter:
    """A reward with a state."""

    def __call__(self, structures):
        return [float(len(structure)) for structure in structures]


counter = Counter()
not_callable = 3
