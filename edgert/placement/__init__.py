"""Placement: devices place training jobs over one another, and shields keep their choices apart."""
