"""What the house shows: events, log lines, metrics, request ids, health."""
