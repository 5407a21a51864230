"""Energies and relaxation of crystals behind one interface, and energies above a hull.

`interface` is the contract of a model, `model` makes one by name, `hull` compares energies with
those of known compounds, `correction` brings them to Materials Project's corrected scale.
"""
