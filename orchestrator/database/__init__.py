"""The run database: SQLAlchemy models, store, outbox, leader lease."""
