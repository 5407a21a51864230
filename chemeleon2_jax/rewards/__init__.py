"""What makes a generated crystal worth more: rewards, one file a family. Host side, no JAX."""
