"""The control plane: decides, watches, recovers."""
