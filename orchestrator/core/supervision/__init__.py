"""Live attempts watched: start-up, progress, findings, hangs, failures, faulty nodes."""
