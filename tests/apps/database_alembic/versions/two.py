import sqlalchemy as sa
from alembic import op

revision, down_revision = "two", "one"


def upgrade() -> None:
    op.add_column("item", sa.Column("size", sa.Integer, server_default="3"))
    with op.get_context().autocommit_block():  # outside of a transaction, as Postgres demands it
        op.create_index("item_name", "item", ["name"], postgresql_concurrently=True)
    op.execute("update item set size = 4 where id = 1")


def downgrade() -> None:
    op.drop_index("item_name")
    op.drop_column("item", "size")
