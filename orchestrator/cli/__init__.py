"""The typer commands, one file per noun."""
