"""Configs of the training stages, and experiments that change them."""
