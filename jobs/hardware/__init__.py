"""Sources of a node's hardware behind one port, live or recorded.

A source (:class:`jobs.hardware.port.Source`) reads one thing: the kernel's log, the counters of
InfiniBand ports, NVML. Its origin is an argument: the root of a file system, a log, a driver. So
the class that reads a live machine also reads a recorded tree, a captured log, or values of NVML in
a JSON file. :mod:`jobs.hardware.sources` puts them together, and :mod:`jobs.hardware.collector`
reads them, each at its interval.
"""
