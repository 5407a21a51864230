"""Experiments by data set: each module holds the changes to its stage's base config."""
