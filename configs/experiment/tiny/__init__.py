"""Small models that train in minutes on a CPU, by default on the embedded data set."""
