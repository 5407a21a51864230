"""Weights from PyTorch, and back."""
