"""Alembic as `alembic init` writes it, the URL from the environment."""

import os

import sqlalchemy
from alembic import context

engine = sqlalchemy.create_engine(
    os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+psycopg2:"), poolclass=sqlalchemy.NullPool
)
with engine.connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
