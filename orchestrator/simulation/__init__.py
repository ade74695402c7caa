"""Two simulators in virtual time: scenarios with failures, and replays of job traces.

`scenario` runs the production core against a simulated site whose failures come from seeded random
streams. `traces` replays the jobs of real clusters under several policies, without randomness.
Neither reads the clock; equal inputs give equal results.
"""
