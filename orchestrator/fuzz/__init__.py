"""Deterministic simulation testing: the whole control plane in one process, among faults.

The real controller, core, agent gateway and store (its SQL on SQLite in memory) run on an event
loop whose time is virtual; agents, cluster, network, training and users are simulated. Servers are
killed or paused between any two steps of the loop, frames are lost, late, doubled and out of order,
the database fails before and after its commits. After every transaction the invariants of the
control plane are checked, against what really is so.

Everything that happens is drawn from one number, the seed: the same seed gives the same journal,
byte for byte, in any process. What is not covered: the WebSocket and HTTP layers, real processes,
PostgreSQL, and load.

`python -m orchestrator.fuzz 0:100`; the modules stand upon each other in this order: plan and
event_loop, network and flaky_database, environment, servers and training, gangs, agents, world,
users, faults, simulation, shrink.
"""
