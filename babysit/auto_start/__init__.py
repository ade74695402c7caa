"""A directory for PYTHONPATH: its `sitecustomize` runs at the start of an interpreter."""
