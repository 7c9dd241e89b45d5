"""Operators: health, metrics, status."""
