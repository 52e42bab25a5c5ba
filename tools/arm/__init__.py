"""The proof that edgert works on 64-bit ARM, without a board: `python -m tools.arm`."""
