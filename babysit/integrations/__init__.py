"""Integrations: two lines in scripts of other frameworks. Each imports its framework on use."""
