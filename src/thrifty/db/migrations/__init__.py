"""Alembic's environment and the row of migrations."""
