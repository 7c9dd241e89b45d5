import sqlalchemy as sa
from alembic import op

revision, down_revision = "one", None


def upgrade() -> None:
    op.create_table("item", sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.Text))
    op.bulk_insert(sa.table("item", sa.column("name", sa.Text)), [{"name": f"n{k}"} for k in range(10)])


def downgrade() -> None:
    op.drop_table("item")
