"""An exception that `sys.exit(0)` in a `finally:` block hides."""

from __future__ import annotations

import sys

import pytest

from babysit import hidden_error


def test_a_source_that_cannot_be_read_leaves_a_trace_and_raises_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def garbled(_name: str) -> list[str]:
        return ["def (:\n"]

    monkeypatch.setattr("linecache.getlines", garbled)
    found = None
    try:
        raise KeyError("lost")
    except KeyError:
        found = hidden_error.hidden_error(sys._getframe())
    assert found == ("", "")
    assert "cannot tell whether sys.exit hides a KeyError: SyntaxError" in caplog.text
