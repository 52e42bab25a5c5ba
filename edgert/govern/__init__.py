"""Govern: measured CPU, heat, battery and link in; one budget that everything obeys out."""
