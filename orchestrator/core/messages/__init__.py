"""What goes into the core and what comes out: events and instructions."""
