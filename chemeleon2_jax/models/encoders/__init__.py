"""Encoders of the VAE, one a file, and the registry of their sizes."""
