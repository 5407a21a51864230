"""Energies of crystals behind one interface, and the hull that they are measured against."""
