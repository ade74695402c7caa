"""The part of the run database that is about people: sessions, the audit log, and usage."""

from __future__ import annotations

from typing import Protocol

from orchestrator.database.audit import AuditLog, MemoryAuditLog, SqlAuditLog
from orchestrator.database.sessions import MemorySessions, Sessions, SqlSessions
from orchestrator.database.usage_records import MemoryUsageRecords, SqlUsageRecords, UsageRecords


class People(Sessions, AuditLog, UsageRecords, Protocol):
    """The part of the run database that is about people."""


class SqlPeople(SqlSessions, SqlAuditLog, SqlUsageRecords):
    """Implements :class:`People` over a database."""


class MemoryPeople(MemorySessions, MemoryAuditLog, MemoryUsageRecords):
    """Implements :class:`People` in memory."""
