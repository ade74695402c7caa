"""Which Ray cluster the control plane was connected to last.

A control store (GCS) without storage that outlives it starts again as another cluster: with another
id, and without the keys and actors of the former one. A raylet of the former cluster ends when it
has not reached its own control store for a time, and with it the agents of its node.

Not guaranteed: a control plane that finds the new cluster from another home than the one that knew
the former does not see the change.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import structlog
from pydantic import BaseModel, ValidationError

_log = structlog.get_logger(__name__)
RAYLET_SECONDS = 75.0
"""Time after which no raylet of a former cluster is left: `gcs_rpc_server_reconnect_timeout_s` of
Ray (60 s), and as much more as its agents need to end."""


class _Known(BaseModel):
    cluster: str
    changed_at: dt.datetime | None = None
    """When another cluster was found in the place of the one before; None: never."""


class KnownCluster:
    """The id of the cluster, kept in a file of the home."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def meet(self, cluster: str, now: dt.datetime) -> float | None:
        """Take note of the cluster that is there now.

        Returns:
            Seconds for which workers of a former cluster may still be alive, 0 if they are over;
            None: there was no former cluster.
        """
        known = self._read()
        if known is None or known.cluster != cluster:
            if known is not None:
                _log.warning(
                    "the Ray cluster was started anew, and knows no worker of the former one",
                    former=known.cluster,
                    cluster=cluster,
                )
            known = _Known(cluster=cluster, changed_at=None if known is None else now)
            self._write(known)
        if known.changed_at is None:
            return None
        return max(0.0, RAYLET_SECONDS - (now - known.changed_at).total_seconds())

    def _read(self) -> _Known | None:
        try:
            return _Known.model_validate_json(self._file.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def _write(self, known: _Known) -> None:
        temporary = self._file.with_suffix(".new")
        temporary.write_text(known.model_dump_json())
        temporary.replace(self._file)
