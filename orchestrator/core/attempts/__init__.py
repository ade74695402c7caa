"""One incarnation of a run's gang: assembled, started, stopped, preempted."""
