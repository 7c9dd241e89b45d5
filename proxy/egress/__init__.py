"""Calls out: what the app asks of others, and what becomes of it."""
