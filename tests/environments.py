"""Wheels, and fresh virtual environments that they are installed into.

Our own wheel is built from the checkout, without network. Wheels of others are downloaded once into
a cache outside the tree, and installed from there without an index.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
THIRD_PARTY = Path(str(importlib.util.find_spec("pydantic").origin)).parents[1]
"""The packages of others that this process has."""


def cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "babysit-tests")


def pip(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(directory: Path) -> Path:
    """Our wheel; what is not committed is in it too."""
    pip("wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", directory, ROOT)
    (wheel,) = directory.glob("*.whl")
    return wheel


def downloaded(*requirements: str) -> Path:
    """A folder with wheels of these and their dependencies. Needs the network the first time."""
    return _once("wheels", requirements, "download", "--dest")


def unpacked(*requirements: str) -> Path:
    """A folder with these and their dependencies, importable. Needs the network the first time."""
    return _once("packages", requirements, "install", "--no-compile", "--target")


def _once(kind: str, requirements: tuple[str, ...], *command: str) -> Path:
    key = json.dumps([sorted(requirements), sys.version_info[:2]])
    folder = cache() / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
            target = Path(fresh, "complete")
            # The option of the folder is the command's last word.
            pip(*command, target, "--only-binary", ":all:", *requirements)
            target.rename(folder)
    return folder


def users_wheel(directory: Path, name: str, files: dict[str, str]) -> Path:
    """A wheel of somebody else's project."""
    directory.mkdir(parents=True, exist_ok=True)
    info = f"{name}-1.0.dist-info"
    everything = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [
        f"{path},{digest(text.encode())},{len(text.encode())}" for path, text in everything.items()
    ]
    everything[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""])
    wheel = directory / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in everything.items():
            archive.writestr(path, text)
    return wheel


def digest(data: bytes) -> str:
    """The form of RECORD."""
    sha = hashlib.sha256(data).digest()
    return f"sha256={base64.urlsafe_b64encode(sha).rstrip(b'=').decode()}"


class Installation:
    """A fresh virtual environment. Packages of others are there only when installed or lent."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        venv.create(directory, symlinks=True, with_pip=False)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.packages = directory / "lib" / version / "site-packages"

    def program(self, name: str) -> str:
        return str(self.directory / "bin" / name)

    def pip(self, *arguments: str | Path) -> str:
        return pip("--python", self.program("python"), *arguments)

    def install(self, *wheels: str | Path, links: Path | None = None) -> None:
        """Install with dependencies from a folder of wheels, or, without one, without any."""
        source = ("--no-deps",) if links is None else ("--find-links", links)
        self.pip("install", "--no-index", "--no-compile", *source, *wheels)

    def lend(self, *folders: Path) -> None:
        """Make folders of packages importable, behind what is installed."""
        (self.packages / "lent.pth").write_text("".join(f"{folder}\n" for folder in folders))

    def installed(self) -> set[str]:
        found = json.loads(self.pip("list", "--format", "json"))
        return {each["name"].lower().replace("_", "-") for each in found}

    def damaged(self) -> list[str]:
        """Files of installed distributions that differ from their RECORD or are gone."""
        found = []
        for record in self.packages.glob("*.dist-info/RECORD"):
            for line in record.read_text().splitlines():
                path, known, _ = line.rsplit(",", 2)
                file = self.packages / path
                if known and (not file.is_file() or digest(file.read_bytes()) != known):
                    found.append(path)
        return found

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a program of this environment; nothing of the checkout is on any path."""
        return subprocess.run(
            [self.program(command[0]), *command[1:]],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.directory,
            env={"PATH": f"{self.directory / 'bin'}:{os.defpath}", **environment},
        )
