"""Small models that train in minutes on a CPU, on the embedded data set or any other."""
