"""The database: many clients' connections over one small shared pool."""
