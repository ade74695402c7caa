"""The node agent: one worker of one run on one node (`babysit-agent CONFIG.json`).

The agent outlives attempts: when a rank dies, the agent and its fork server stay, and only ranks
restart. No process may survive its owner, in four steps. A rank dies with its parent, the fork
server (`PR_SET_PDEATHSIG`). The fork server kills the process groups of its ranks when the agent
ends. The reaper, a process with no other task, then kills every process that still has the worker's
mark in its environment. The agent does the same when the fork server ends.
"""
