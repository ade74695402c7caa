"""Reports of node monitors: permission to send them, and the knowledge that they bring."""
