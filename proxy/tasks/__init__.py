"""Tasks: requests that run later, behind a 202 (RFC 7240, `respond-async`).

The queue is one table, in SQLite for one instance or in PostgreSQL for several. It is loaded only if the policy names
it: a route with `background`, or `schedules`.
"""
