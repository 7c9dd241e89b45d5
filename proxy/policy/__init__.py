"""The policy: its model, reading it, watching it for changes."""
