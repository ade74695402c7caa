"""The node agent: one worker of one run on one node (`python -P -m jobs.agent CONFIG.json`).

It outlives attempts: when a rank dies, the agent and its standby interpreter stay and only
processes restart. Who watches whom: a rank dies with its parent, the standby (`PR_SET_PDEATHSIG`);
the standby kills the groups of its ranks when the agent goes; the warden, a process that does
nothing else, kills whatever then still bears the worker's mark; the agent does the same when the
standby goes.
"""
