"""Experiments on Alex-MP-20."""
