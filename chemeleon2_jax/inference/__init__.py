"""Trained models at work: the Python API, generation, requests and their conditions."""
