"""The code of a run as it leaves the submitter's machine: chosen, packed and uploaded."""
