"""The job on its node: run spec, node agent, fork server, templates."""
