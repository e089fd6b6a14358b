"""The supervisor outside: it watches Docker, decides, heals, and knows when not to."""

from probe import __version__

__all__ = ["__version__"]
