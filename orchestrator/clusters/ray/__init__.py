"""The Ray cluster: each worker is a detached, named actor on its node, with the agent below it.

What makes a start happen at most once: Ray frees the name of an actor that has ended, so a name
proves nothing afterwards. The proof is a *claim*, one key in the key-value store of Ray's control
store (GCS): the actor writes it, if it is absent, before it starts the agent, and a stop writes it
for a worker that has not started. The second of them starts nothing.

*Gone* is Ray's word, too: the actor has stored how its agent ended after the last process of the
worker was dead; or Ray has declared the node dead; or it has declared the actor dead, and a task on
the same node has found no process of the worker left.

The control plane itself imports no Ray. A process below it does (:mod:`.driver`), since a program
that is connected to Ray is ended by Ray's library when it cannot reach the cluster for a minute.
"""
