"""How good the monitors are: judged again over recorded runs, and by faults on purpose. Pure."""
