"""Metrics of crystals: reconstruction, plausibility, novelty, distributions. Host side, no JAX.

A metric (`metric`) is a function of the crystals under evaluation, for each of them or for the set,
and a line in `registry`. `report` computes them; `table` and `summary` know none by name.
"""
