"""The typer commands, one file for each noun or small group of commands."""
