"""Versions with weights, desired state with its history, and one row per response.

The columns of the first release stay, so that a gateway worker of that release can run beside this
one: it writes `request_id` and leaves the new columns empty. Until it ends, three triggers make its
writes safe:

- SQLite would number its rows right after the largest number, which is in the range of future
  responses. They get small numbers instead. (PostgreSQL's sequence continues by itself.)
- It refers to texts by `request_id` only. Each text gets the number of its request.
- It prunes by the distance from the largest number, which would now be nearly all rows. Only a
  transaction that holds the lease `prune-requests` may delete from `requests`.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_FIRST_NUMBER = 2**50
"""Numbers of responses are larger: they hold the milliseconds since 2020, shifted by 22 bits."""
_REFUSAL = (
    "rows of the request log are deleted by pruning; to delete others, put the lease "
    "prune-requests into the table leases within the same transaction, and take it out again"
)

_BIG_KEY = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Apply the migration."""
    op.create_table(
        "versions",
        sa.Column("deployment", sa.String(length=64), nullable=False),
        sa.Column("label", sa.String(length=64), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("engine", sa.String(length=32), nullable=False),
        sa.Column("revision", sa.String(length=32), nullable=False),
        sa.Column("artifact", sa.String(length=64), nullable=True),
        sa.Column("weight", sa.Double(), nullable=False),
        sa.Column("shadow", sa.Double(), nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("updated_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("deployment", "label", name=op.f("pk_versions")),
    )
    op.create_table(
        "desired",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("change_id", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_desired")),
    )
    op.create_table(
        "desired_changes",
        sa.Column("id", _BIG_KEY, autoincrement=True, nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("who", sa.String(length=128), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_desired_changes")),
    )
    op.create_index(op.f("ix_desired_changes_name"), "desired_changes", ["name"])
    op.create_table(
        "secrets",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_secrets")),
    )
    with op.batch_alter_table("requests") as table:
        table.alter_column("request_id", existing_type=sa.String(length=64), nullable=True)
        table.add_column(sa.Column("client_request_id", sa.String(length=64), nullable=True))
        table.add_column(sa.Column("conversation_id", sa.String(length=32), nullable=True))
        table.add_column(sa.Column("origin", sa.String(length=16), nullable=True))
        table.add_column(sa.Column("shadow_of", sa.BigInteger(), nullable=True))
        table.add_column(sa.Column("rerouted", sa.Boolean(), nullable=True))
    op.create_index(op.f("ix_requests_client_request_id"), "requests", ["client_request_id"])
    op.create_index(op.f("ix_requests_conversation_id"), "requests", ["conversation_id"])
    op.execute(
        "UPDATE requests SET client_request_id = request_id WHERE request_id NOT LIKE 'req-%'"
    )
    _number_texts()
    if op.get_bind().dialect.name == "postgresql":
        _add_postgres_triggers()
    else:
        _add_sqlite_triggers()


def _add_sqlite_triggers() -> None:
    op.execute(
        "CREATE TRIGGER number_old_requests AFTER INSERT ON requests "  # noqa: S608
        f"WHEN NEW.request_id IS NOT NULL AND NEW.id >= {_FIRST_NUMBER} BEGIN "
        "UPDATE requests SET id = (SELECT COALESCE(MAX(id), 0) + 1 FROM requests "
        f"WHERE id < {_FIRST_NUMBER}) WHERE id = NEW.id; END"
    )
    op.execute(
        "CREATE TRIGGER number_old_texts AFTER INSERT ON request_texts "
        "WHEN NEW.request_id IS NOT NULL BEGIN "
        "UPDATE request_texts SET id = COALESCE("
        "(SELECT r.id FROM requests r WHERE r.request_id = NEW.request_id AND r.at_s = NEW.at_s "
        "AND NOT EXISTS (SELECT 1 FROM request_texts t WHERE t.id = r.id AND t.id <> NEW.id) "
        "LIMIT 1), (SELECT MIN(0, MIN(id)) - 1 FROM request_texts)) WHERE id = NEW.id; END"
    )
    op.execute(
        "CREATE TRIGGER keep_requests BEFORE DELETE ON requests "  # noqa: S608
        "WHEN NOT EXISTS (SELECT 1 FROM leases WHERE name = 'prune-requests') BEGIN "
        f"SELECT RAISE(ABORT, '{_REFUSAL}'); END"
    )


def _add_postgres_triggers() -> None:
    op.execute(
        "SELECT setval(pg_get_serial_sequence('request_texts', 'id'), "
        "(SELECT COUNT(*) FROM request_texts WHERE id < 0) + 1, false)"
    )
    op.execute(
        "CREATE FUNCTION number_old_texts() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "NEW.id := COALESCE("
        "(SELECT r.id FROM requests r WHERE r.request_id = NEW.request_id AND r.at_s = NEW.at_s "
        "AND NOT EXISTS (SELECT 1 FROM request_texts t WHERE t.id = r.id) LIMIT 1), -NEW.id); "
        "RETURN NEW; END $$"
    )
    op.execute(
        "CREATE TRIGGER number_old_texts BEFORE INSERT ON request_texts FOR EACH ROW "
        "WHEN (NEW.request_id IS NOT NULL) EXECUTE FUNCTION number_old_texts()"
    )
    op.execute(
        "CREATE FUNCTION keep_requests() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "  # noqa: S608
        "IF EXISTS (SELECT 1 FROM leases WHERE name = 'prune-requests') THEN RETURN OLD; END IF; "
        f"RAISE EXCEPTION '{_REFUSAL}'; END $$"
    )
    op.execute(
        "CREATE TRIGGER keep_requests BEFORE DELETE ON requests FOR EACH ROW "
        "EXECUTE FUNCTION keep_requests()"
    )


def _remove_triggers() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER keep_requests ON requests")
        op.execute("DROP TRIGGER number_old_texts ON request_texts")
        op.execute("DROP FUNCTION keep_requests()")
        op.execute("DROP FUNCTION number_old_texts()")
        return
    for name in ("keep_requests", "number_old_texts", "number_old_requests"):
        op.execute(f"DROP TRIGGER {name}")


def _renumber_requests() -> None:
    """Give responses small consecutive numbers, which the first release expects when it prunes."""
    op.execute(
        "UPDATE requests SET id = numbered.new_id FROM (SELECT id AS old_id, "  # noqa: S608
        "ROW_NUMBER() OVER (ORDER BY id) + (SELECT COALESCE(MAX(id), 0) FROM requests "
        f"WHERE id < {_FIRST_NUMBER}) AS new_id FROM requests WHERE id >= {_FIRST_NUMBER}) numbered "
        "WHERE requests.id = numbered.old_id"
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "SELECT setval(pg_get_serial_sequence('requests', 'id'), "
            "COALESCE((SELECT MAX(id) FROM requests), 0) + 1, false)"
        )


def _number_texts() -> None:
    """Give each text the number of its request; texts without one get negative numbers."""
    op.rename_table("request_texts", "old_request_texts")
    op.drop_index(op.f("ix_request_texts_at_s"), "old_request_texts")
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "ALTER TABLE old_request_texts RENAME CONSTRAINT pk_request_texts TO pk_old_texts"
        )
    op.create_table(
        "request_texts",
        sa.Column("id", _BIG_KEY, autoincrement=True, nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=True),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_request_texts")),
    )
    op.create_index(op.f("ix_request_texts_at_s"), "request_texts", ["at_s"])
    op.execute(
        "INSERT INTO request_texts (id, request_id, at_s, prompt, answer) "
        "SELECT COALESCE(found.id, -ROW_NUMBER() OVER (ORDER BY texts.request_id)), "
        "texts.request_id, texts.at_s, texts.prompt, texts.answer "
        "FROM old_request_texts texts LEFT JOIN "
        "(SELECT request_id, MIN(id) AS id FROM requests GROUP BY request_id) found "
        "ON found.request_id = texts.request_id"
    )
    op.drop_table("old_request_texts")


def downgrade() -> None:
    """Revert the migration. Texts of requests without an id of the first release get one."""
    _remove_triggers()
    op.rename_table("request_texts", "new_request_texts")
    op.drop_index(op.f("ix_request_texts_at_s"), "new_request_texts")
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "ALTER TABLE new_request_texts RENAME CONSTRAINT pk_request_texts TO pk_new_texts"
        )
    op.create_table(
        "request_texts",
        sa.Column("request_id", sa.String(length=64), nullable=False),
        sa.Column("at_s", sa.Double(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("request_id", name=op.f("pk_request_texts")),
    )
    op.create_index(op.f("ix_request_texts_at_s"), "request_texts", ["at_s"])
    op.execute(
        "INSERT INTO request_texts (request_id, at_s, prompt, answer) "
        "SELECT COALESCE(request_id, 'req-' || CAST(id AS VARCHAR(20))), at_s, prompt, answer "
        "FROM new_request_texts"
    )
    op.drop_table("new_request_texts")
    op.execute(
        "UPDATE requests SET request_id = COALESCE(client_request_id, "
        "'req-' || CAST(id AS VARCHAR(20))) WHERE request_id IS NULL"
    )
    op.drop_index(op.f("ix_requests_conversation_id"), "requests")
    op.drop_index(op.f("ix_requests_client_request_id"), "requests")
    with op.batch_alter_table("requests") as table:
        for name in ("rerouted", "shadow_of", "origin", "conversation_id", "client_request_id"):
            table.drop_column(name)
        table.alter_column("request_id", existing_type=sa.String(length=64), nullable=False)
    _renumber_requests()
    for name in ("secrets", "desired_changes", "desired", "versions"):
        op.drop_table(name)
