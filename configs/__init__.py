"""Configurations of the training stages, and the experiments that change them."""
