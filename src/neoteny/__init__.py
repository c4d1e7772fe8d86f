"""neoteny: a laboratory for networks that must keep learning."""

__version__ = "0.1.0"
