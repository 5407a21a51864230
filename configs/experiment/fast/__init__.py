"""Small models that learn to generate in minutes on a CPU, on the classic structure types or any
other data: what the tiny ones are for the code, these are for the crystals.
"""
