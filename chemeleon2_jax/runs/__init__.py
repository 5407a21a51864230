"""Runs from the command line: configs and their checks, run folders, logs, exit codes."""
