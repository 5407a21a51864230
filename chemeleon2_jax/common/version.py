"""The version of the package and of its metadata."""

__version__ = "0.1.0"
