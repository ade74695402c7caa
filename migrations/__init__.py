"""Alembic migrations of the run database.

`babysit db upgrade` runs them from the installed package.
"""
