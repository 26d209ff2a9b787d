"""Smaller models: a rung of the study, and `graft shrink`."""
