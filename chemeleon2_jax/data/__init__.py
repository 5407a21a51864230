"""Crystals from files and named sets to flat arrays, and from arrays to batches.

The modules here import no JAX where worker processes need them, and nothing is read or downloaded
at import.
"""
