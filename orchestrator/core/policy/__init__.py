"""Rules without state: what a failure means, what is admitted, which limits apply."""
