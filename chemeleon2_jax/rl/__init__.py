"""Reinforcement learning over the diffusion chain. Knows no model and no reward."""
