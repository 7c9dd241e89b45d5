"""Observability: events and the log, metrics and their history, alerts, request ids, health."""
