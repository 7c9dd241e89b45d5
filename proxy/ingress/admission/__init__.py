"""How many requests the app works on at once: bounded, queued or adapted (admission control)."""
