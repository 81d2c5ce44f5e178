"""Faster ways to compute the same, measured beside the plain path and not offered to users."""
