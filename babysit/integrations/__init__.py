"""Two lines in the scripts of other frameworks. Each module imports its framework when used."""
