"""How quickly each class of failure is found and recovered from here, by faults on purpose.

    python benchmarks/drill.py [--faults kill,hang] [--write]

Runs `babysit monitors drill` with its built-in job: a small GPT, sharded over two virtual nodes.
`--write` puts the table into `docs/monitors.md`. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from orchestrator.judgement.faults import FAULTS, NOT_PROVOKED, Fault

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "monitors.md"
BEGIN, END = "<!-- benchmarks/drill.py --write: begin -->", "<!-- benchmarks/drill.py: end -->"
HEAD = ("class", "fault", "found here", "reference speed", "target", "over here", "action")


def drill(faults: str | None) -> dict[str, Any]:
    """The scoreboard of a drill.

    Raises:
        RuntimeError: The drill did not get as far as a scoreboard.
    """
    with tempfile.TemporaryDirectory(prefix="babysit-drill-") as directory:
        command = [sys.executable, "-m", "orchestrator.cli.main", "monitors", "drill"]
        command += ["--directory", str(Path(directory) / "drill"), "-o", "json"]
        command += [] if faults is None else ["--faults", faults]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if not done.stdout:
        raise RuntimeError(f"the drill ended with exit code {done.returncode} and no scoreboard")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def cells(fault: Fault, row: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table."""
    unit = "steps" if fault.in_steps else "s"
    found, over = row["found_after"], row["recovered_after"]
    return (
        str(fault.row),
        f"`{fault.name}`: {fault.what}",
        "not found" if found is None else f"{found:.1f} {unit} (`{row['found_as']}`)",
        fault.reference,
        f"{fault.target:g} {unit}",
        "never" if over is None else f"{fault.ending}, {over:.1f} s",
        fault.action,
    )


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table of the documentation, and the classes that are not in it."""
    lines = [HEAD, ("---",) * len(HEAD)]
    lines += [cells(FAULTS[row["fault"]], row) for row in rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    rest = "\n".join(f"* {name}: {why}." for name, why in NOT_PROVOKED.items())
    return f"{table}\n\nNot provoked:\n\n{rest}"


def written(page: str, table: str) -> str:
    """The page with another table between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", help="only these, separated by commas")
    parser.add_argument("--write", action="store_true", help="write the table into the docs")
    options = parser.parse_args()
    found = drill(options.faults)
    table = markdown(found["faults"])
    print(table)
    if options.write:
        PAGE.write_text(written(PAGE.read_text(), table))
    figures = {row["fault"]: row["found_after"] for row in found["faults"]}
    met = sum(row["ok"] for row in found["faults"])
    total = len(found["faults"])
    print(
        json.dumps(
            {"met": met, "faults": total, "seconds": found["seconds"], "found_after": figures}
        )
    )


if __name__ == "__main__":
    main()
