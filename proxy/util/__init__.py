"""Small data structures that more than one room needs; they know nothing of the gateway."""
