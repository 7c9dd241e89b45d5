"""Makes the database that Datasette shows."""

import sqlite3

with sqlite3.connect("data.db") as db:
    db.execute("DROP TABLE IF EXISTS items")
    db.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT, price REAL)")
    db.executemany("INSERT INTO items (name, price) VALUES (?, ?)", [(f"item {n}", n / 7) for n in range(20_000)])
