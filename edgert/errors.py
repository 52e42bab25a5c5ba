"""Every error edgert raises on purpose; its type says who is at fault.

Each leaf is also the builtin a caller would expect, so `except ValueError` works for people who never heard of edgert.
Any exception that leaves a public edgert function and is not one of these is a bug.
"""


class EdgertError(Exception):
    """Root of all edgert errors; never raised itself."""


class ConfigError(EdgertError, ValueError):
    """The user's file is wrong: lists every fault with its file and key path."""


class MessageError(EdgertError, ValueError):
    """A peer sent something malformed: drop it, count it, go on."""


class UsageError(EdgertError, RuntimeError):
    """The caller broke the contract (shape, dtype, state, order of calls)."""


class ArtifactError(EdgertError, ValueError):
    """A bundle or checkpoint fails its hash, schema, shape or golden check: the former one stays."""


class BoardError(EdgertError, OSError):
    """A device that must work does not. A silent sensor is an unknown reading, not this."""


class LinkError(EdgertError, ConnectionError):
    """The broker cannot be reached or refused us."""


class StoreError(EdgertError, OSError):
    """The disk is full, read-only, or holds a torn file."""
