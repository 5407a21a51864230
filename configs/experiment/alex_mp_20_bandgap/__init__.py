"""Experiments on the crystals of Alex-MP-20 with a band gap."""
