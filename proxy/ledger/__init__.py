"""What every call cost, and for whom: written off the path, kept in SQLite or PostgreSQL, summed up in reports."""
