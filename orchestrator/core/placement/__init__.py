"""Placement of workers: from the core's state to the scheduler, and from its plan to workers."""
