"""Deterministic simulation testing: the whole control plane in one process, among faults.

One seed is one story. The real controller, core and store (its SQL on SQLite in memory) run on an
event loop whose time is virtual; agents, cluster, network and people are played. Servers are
killed or paused between any two steps of the loop, messages are lost, late, doubled and out of
order, the database fails before and after its commits. After every transaction the promises of
the control plane are checked. The same seed is the same story, byte for byte.

`python -m orchestrator.fuzz 0:100`
"""
