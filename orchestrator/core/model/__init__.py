"""The core's model: entities, their states and the legal moves between them."""
