"""`python -m edgert` is `edgert`."""

from __future__ import annotations

from edgert.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
