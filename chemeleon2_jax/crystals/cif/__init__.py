"""CIFs to crystals: syntax, elements, symmetry, sites, and checks against what a file declares."""
