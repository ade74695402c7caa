"""`babysit prometheus`: alert rules for Prometheus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.errors import CliError, ExitCode
from orchestrator.cli.output import say
from orchestrator.dashboards.alert_rules import RULES

app = typer.Typer(no_args_is_help=True, help="Alert rules for Prometheus.")


@app.command()
def export(
    output: Annotated[Path, typer.Option(help="Directory; created if it is not there.")] = Path(
        "prometheus"
    ),
) -> None:
    """Write the alert rules as a file for `rule_files` of Prometheus. Needs no server.

    For example:

        babysit prometheus export --output /etc/prometheus
    """
    file = output / "babysit-rules.yml"
    try:
        output.mkdir(parents=True, exist_ok=True)
        file.write_text(RULES.read_text())
    except OSError as error:
        raise CliError(
            f"{file} cannot be written: {error.strerror}. Choose another --output.", ExitCode.USAGE
        ) from error
    say(f"{file}: add it to rule_files in prometheus.yml; the scrape job must be called babysit")
