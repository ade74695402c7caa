"""Supervision of live attempts: start-up, progress, findings, hangs, failures, faulty nodes.

Here a hang becomes a restart: `hangs` has silent ranks looked at, `findings` starts the remedy,
`judgement` decides when the attempt is dead, and `orchestrator.core.attempts` starts the next one.
"""
