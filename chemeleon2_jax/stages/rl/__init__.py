"""Reinforcement learning: rollouts, rewards and updates of a latent diffusion model."""
