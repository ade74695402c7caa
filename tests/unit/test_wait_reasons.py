"""The words of each reason to wait: one table for the status, explain, dry runs and the docs."""

from __future__ import annotations

import string

import pytest

from orchestrator.core.placement import wait_reasons
from orchestrator.core.scheduling import Pending
from orchestrator.core.views import waiting


@pytest.mark.parametrize("why", Pending)
def test_each_reason_has_words_of_its_own(why: Pending) -> None:
    words = wait_reasons.WORDS[why]
    assert words.status
    assert [w for w in wait_reasons.WORDS.values() if w.status == words.status] == [words]


@pytest.mark.parametrize("why", Pending)
def test_explain_has_every_fact_that_the_words_name(why: Pending) -> None:
    words = wait_reasons.WORDS[why]
    named = {
        name
        for text in (words.status, words.cause, words.unblock)
        for _, name, _, _ in string.Formatter().parse(text)
        if name
    }
    assert named <= set(waiting.Facts.__annotations__)


def test_the_status_of_a_run_has_no_figure_that_changes_while_it_waits() -> None:
    """Each change of a status is written to the run database, and thousands of runs may wait."""
    for words in wait_reasons.WORDS.values():
        names = {name for _, name, _, _ in string.Formatter().parse(words.status) if name}
        assert names <= {"pack"}
    assert (
        wait_reasons.waiting(Pending.TOPOLOGY, 1, pack="rack")
        == "waits for 1 node: enough nodes are free, but not within one rack"
    )
