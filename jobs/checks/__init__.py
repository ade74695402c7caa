"""Checks of a node: programs that measure it, each in a process of its own with a time limit."""
