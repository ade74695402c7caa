"""`make bench` runs every file of benchmarks/: each must be a program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.postgres import PostgresServer

ROOT = Path(__file__).parents[2]
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))


def test_make_runs_what_is_tested_here() -> None:
    assert "for file in benchmarks/*.py;" in (ROOT / "Makefile").read_text()
    assert BENCHMARKS


@pytest.mark.parametrize("script", BENCHMARKS, ids=lambda script: script.stem)
def test_every_benchmark_is_a_program_that_explains_itself(script: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(script), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {script.name}")


def test_the_database_is_measured_as_durable_as_in_production() -> None:
    assert "PostgresServer(durable=True)" in (ROOT / "benchmarks" / "database.py").read_text()
    server = PostgresServer(durable=True)
    try:
        server.start()
        with psycopg.connect(server.url()) as connection:
            for setting in ("fsync", "full_page_writes", "synchronous_commit"):
                assert connection.execute(f"SHOW {setting}").fetchone() == ("on",)
    finally:
        server.remove()
