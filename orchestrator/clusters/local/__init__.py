"""Workers on this machine: each virtual node is a set of process groups here."""
