"""Reports of runs: one file for people who were not there, made of what the API answers. Pure."""
