"""Experiments on MP-20."""
