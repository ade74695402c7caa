"""The phases of a recovery."""

from __future__ import annotations

PHASES = ("detect", "stop", "place", "start", "restore", "recompute")
"""Phases that a recovery's seconds are split into, in order."""
