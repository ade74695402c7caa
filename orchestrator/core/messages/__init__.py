"""Messages of the core: events go in, instructions come out."""
