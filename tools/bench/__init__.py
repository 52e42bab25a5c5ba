"""Benchmarks that need more than one device or a workstation: `python -m tools.bench NAME [--quick]`."""
