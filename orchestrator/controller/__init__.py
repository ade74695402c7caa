"""The loop that joins the ports: takes events, has the core decide, commits, then acts."""
