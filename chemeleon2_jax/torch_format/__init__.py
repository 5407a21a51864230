"""Checkpoints of the PyTorch original, read and written without PyTorch."""
