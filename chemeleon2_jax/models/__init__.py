"""The neural networks: VAE (transformer and CSPNet encoders) and diffusion transformer."""
