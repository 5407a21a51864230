"""Crystals: from files and named sets to flat arrays, and from arrays to batches.

Modules that worker processes import are free of JAX, and nothing is read or downloaded at import.
"""
