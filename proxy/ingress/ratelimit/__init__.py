"""Rate limits by user and route, exact over every window."""
