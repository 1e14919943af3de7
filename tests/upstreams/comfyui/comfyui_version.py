"""Version that the stand-in answers with."""

__version__ = "0.28.1"
