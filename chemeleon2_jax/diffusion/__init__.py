"""Gaussian diffusion: schedules, targets, training loss, samplers. Knows no model."""
