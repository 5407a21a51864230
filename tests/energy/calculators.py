"""ASE calculators with faults for certain elements."""

import time

from ase.calculators.lj import LennardJones

NUM_MADE = 0
"""Calculators made in this process."""


class Pairs(LennardJones):
    """A Lennard-Jones crystal of argon's size, with elements that do harm."""

    def __init__(self, *, shift=0.0):
        global NUM_MADE
        NUM_MADE += 1
        super().__init__(sigma=3.4, epsilon=0.01, rc=8.0, smooth=True)
        self.shift = shift

    def calculate(self, atoms=None, properties=None, system_changes=()):
        symbols = set(atoms.get_chemical_symbols())
        if "Og" in symbols or "Po" in symbols:
            raise RuntimeError("no such element")
        if "Xe" in symbols:
            sum(range(10**13))  # one call into C, which no alarm stops
        if "Kr" in symbols:
            self.atoms, self.results = atoms.copy(), {"energy": 1e6}  # a wrong intermediate result
            time.sleep(60)
        super().calculate(atoms, properties or ["energy"], system_changes)
        self.results["energy"] += self.shift * len(atoms)
        if "Rn" in symbols:
            self.results["energy"] = float("nan")
        if "He" in symbols:  # blows the cell up
            self.results["stress"] = self.results["stress"] * 0 - 50.0


def make_pairs(shift):
    """Make a calculator in a function, as `mace_mp` does."""
    return Pairs(shift=shift)


def make_nothing():
    return None


class Broken:
    def __init__(self):
        raise RuntimeError("no weights")
