"""What crystals are worth: reconstruction, plausibility, novelty, diversity. Host side, no JAX."""
