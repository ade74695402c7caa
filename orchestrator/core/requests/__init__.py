"""Requests of operators: about runs, nodes, and the cluster."""
