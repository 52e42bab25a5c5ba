"""What a fleet does to its devices, and what it costs."""
