"""Experiments by data set: each module says only what differs from its stage's base config."""
