"""What crystals are worth: reconstruction and physical plausibility. Host side, no JAX."""
