"""Where workers run: one small protocol, an implementation per kind of cluster."""
