"""Bundles: the code of runs, as submitters upload it and agents fetch it."""
