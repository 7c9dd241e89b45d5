"""How a client of the database comes in: TLS, the startup packet, SCRAM."""
