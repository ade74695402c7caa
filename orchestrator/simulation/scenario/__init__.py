"""Scenarios: a fleet, its runs and their failures under virtual time."""
