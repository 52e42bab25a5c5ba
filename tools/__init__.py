"""Workstation tools: train, export, bench. They may import edgert; edgert never imports them."""
