"""Which nodes a run's workers get: from the state to the scheduler and back."""
