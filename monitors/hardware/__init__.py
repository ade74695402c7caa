"""Faults of machines: readings of nodes in, findings about nodes out. Pure, as all monitors are."""
