"""What a job is and how it runs on a node: the run spec, the node agent, standby, templates."""
