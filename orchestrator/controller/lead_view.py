"""Reads of the present lead, for requests, metrics and probes; empty without one."""

from __future__ import annotations

from orchestrator.controller.attention import Lag
from orchestrator.controller.lead import Lead
from orchestrator.controller.leadership import Leadership
from orchestrator.controller.live_numbers import LiveNumbers
from orchestrator.core.model.state import State


class LeadView:
    """The part of a controller that only reads its lead."""

    _lead: Lead

    @property
    def _leadership(self) -> Leadership | None:
        return self._lead.leadership

    @property
    def is_leader(self) -> bool:
        """True while this controller decides, as far as it knows; see `Lead.is_fresh`."""
        return self._lead.is_fresh

    @property
    def state(self) -> State:
        """The core's state, to be read only; empty while this controller does not lead."""
        return State() if self._leadership is None else self._leadership.live.state

    @property
    def numbers(self) -> LiveNumbers:
        """The newest numbers of live runs; empty while this controller does not lead."""
        return LiveNumbers() if self._leadership is None else self._leadership.live.numbers

    @property
    def lag(self) -> Lag:
        """How far this server is behind; nothing on a server that does not lead."""
        leadership = self._leadership
        if leadership is None:
            return Lag()
        return Lag(leadership.queue.age, leadership.live.attention.lag)
