"""Outrigger: one process in front of a small web app."""

__version__ = "0.1.0"
