"""What people ask for: of runs, of nodes, of the cluster."""
