"""A bundle store behind a URL of fsspec: a shared directory, an object store.

Several servers with homes of their own share it. Every call blocks, and runs in a thread.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import fsspec

from orchestrator.errors import InvalidError, TemporaryError

_SUFFIX = ".tar"


class Stored(NamedTuple):
    """A bundle in a store."""

    id: str
    size: int
    """Bytes."""
    changed: float
    """Unix seconds of its arrival or its last use; 0: not known."""


class RemoteStore:
    """Bundles by id, in the directory that a URL names.

    Args:
        url: Such as `s3://bucket/babysit`, or `file:///mnt/shared/bundles`.

    Raises:
        InvalidError: No file system of fsspec is known by this scheme, or its package is missing.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise InvalidError(f"BABYSIT_BUNDLES={url}: {error}") from error

    def has(self, bundle: str) -> bool:
        """True if the store has a bundle."""
        with self._told():
            self._files.invalidate_cache()
            return bool(self._files.exists(self._path(bundle)))

    def put(self, bundle: str, file: Path) -> None:
        """Store a file under its id. A reader never sees a part of it.

        Raises:
            TemporaryError: The store does not take it.
        """
        part = f"{self._root}/.{bundle}.{secrets.token_hex(8)}.part"
        with self._told():
            self._files.makedirs(self._root, exist_ok=True)
            try:
                self._files.put_file(str(file), part)
                self._files.mv(part, self._path(bundle))
            except BaseException:
                with contextlib.suppress(Exception):
                    self._files.rm_file(part)
                raise

    def get(self, bundle: str, file: Path) -> bool:
        """Copy a bundle to a file; False: the store does not have it."""
        with self._told():
            try:
                self._files.get_file(self._path(bundle), str(file))
            except FileNotFoundError:
                return False
        return True

    def remove(self, bundle: str) -> None:
        """Delete a bundle, if it is there."""
        with self._told(), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._path(bundle))

    def all(self) -> list[Stored]:
        """All bundles of the store."""
        with self._told():
            self._files.invalidate_cache()
            try:
                found = self._files.ls(self._root, detail=True)
            except FileNotFoundError:
                return []
        return [
            Stored(
                Path(each["name"]).name.removesuffix(_SUFFIX), int(each["size"] or 0), _time(each)
            )
            for each in found
            if each["name"].endswith(_SUFFIX)
        ]

    def _path(self, bundle: str) -> str:
        return f"{self._root}/{bundle}{_SUFFIX}"

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Every library behind fsspec has errors of its own."""
        try:
            yield
        except Exception as error:
            raise TemporaryError(
                f"the bundle store {self._url} does not answer: {error or type(error).__name__}."
                " Check BABYSIT_BUNDLES and its credentials"
            ) from error


def _time(details: dict[str, object]) -> float:
    """When a file changed, by whichever name its file system has for that."""
    for name in ("mtime", "LastModified", "updated", "last_modified", "created"):
        value = details.get(name)
        if isinstance(value, (int, float)):
            return float(value)
        if (moment := getattr(value, "timestamp", None)) is not None:
            return float(moment())
    return 0.0
