"""What would have happened: the traces of real clusters, replayed in virtual time.

Pure and deterministic: no clock, no randomness. Times are seconds since the origin of the trace.
"""
