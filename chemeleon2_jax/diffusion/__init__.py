"""Gaussian diffusion: schedules, training loss, samplers. Knows no model."""
