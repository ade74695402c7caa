"""The Dockerfile, as far as it can be checked without building it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
STAGES = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)[1:]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
POD = (ROOT / "helm" / "babysit" / "templates" / "_helpers.tpl").read_text()


def test_the_image_has_no_tools_and_no_sources_of_the_build() -> None:
    build, image = STAGES
    assert "AS build" in build
    assert re.findall(r"^COPY (.+)$", image, re.MULTILINE) == ["--from=build /opt/venv /opt/venv"]
    assert build.partition(" ")[0] == image.partition("\n")[0], "a venv has the interpreter's path"


def test_the_user_is_the_one_that_the_chart_runs_it_as() -> None:
    (user,) = re.findall(r"^USER (\d+):\d+$", STAGES[-1], re.MULTILINE)
    assert int(user) > 0
    assert f"runAsUser: {user}" in POD
    assert f"useradd --uid {user} " in STAGES[-1]
    assert STAGES[-1].index("useradd") < STAGES[-1].index("USER")


def test_extras_exist() -> None:
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', STAGES[0])
    assert set(extras.split(",")) <= PROJECT["project"]["optional-dependencies"].keys()


def test_the_context_has_what_the_wheel_is_built_from_and_no_more() -> None:
    lines = (ROOT / ".dockerignore").read_text().split()
    allowed = {line[1:].removesuffix("/**") for line in lines if line.startswith("!")}
    project = PROJECT["project"]
    parts = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    assert allowed == {*parts, project["readme"], "LICENSE", "pyproject.toml"}
    assert lines[0] == "**"


def test_commands_are_those_that_the_wheel_installs() -> None:
    (program,) = re.findall(r'^ENTRYPOINT \["(\w+)"\]$', STAGES[-1], re.MULTILINE)
    assert program in PROJECT["project"]["scripts"]
