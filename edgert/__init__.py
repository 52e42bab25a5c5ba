"""edgert: run, adapt and teach early-exit policies on small ARM boards."""

__version__ = "0.1.0"
