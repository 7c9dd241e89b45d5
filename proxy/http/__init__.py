"""HTTP that both directions share: hop-by-hop fields, problem details, Retry-After, tunnels."""
