"""Pure decisions: events in, instructions out. No I/O, no clock, no randomness."""
