"""Experiments on the crystals of Alex-MP-20 that have a band gap."""
