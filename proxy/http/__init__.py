"""HTTP that both doors share: problem details, Retry-After, tunnels."""
