"""Neural networks, and their sizes, which are free of JAX."""
