"""Trained models by name: run folders, checkpoints, published keys, PyTorch files."""
