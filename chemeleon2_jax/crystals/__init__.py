"""Crystals as arrays and as pymatgen Structures, their geometry, and pictures of them."""
