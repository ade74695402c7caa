"""What the core knows: entities, their states and the legal moves between them."""
