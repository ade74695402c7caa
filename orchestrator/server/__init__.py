"""HTTP API, agent gateway and metrics endpoint."""
