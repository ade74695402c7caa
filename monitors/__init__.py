"""Streaming detectors: samples in, findings out. No I/O, no clock, no database."""
