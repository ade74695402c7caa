"""Scenarios: a fleet, its runs and their failures, simulated in virtual time."""
