"""Kubernetes: each worker is a Pod, pinned to its node by affinity.

What belongs to a run hangs on one object, a headless Service with the name of the run: the Pods of
its workers, and for each worker a Secret with the agent's configuration. When the run is over the
Service is deleted, and the garbage collector of Kubernetes removes the rest.

A worker starts once. Its Secret is created first and outlives its Pod: a Secret that is marked
*gone* has lost the configuration, so that no Pod can start from it. Its Pod has a finalizer, so
that its object stays until the control plane has stored how it ended.
"""
