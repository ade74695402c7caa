"""Reports of runs: their figures add up, and whatever a run is like, the file is sound."""

from __future__ import annotations

import dataclasses
import functools
import html.parser
import math
import re
from typing import Any

import pytest

from monitors.failures import Cause
from monitors.types import FindingKind
from orchestrator.core.model.vocabulary import Remedy
from orchestrator.core.views.models import EventView
from orchestrator.reports import html as page
from orchestrator.reports import markdown, picture, report
from orchestrator.reports.curve import curve_of
from orchestrator.reports.events import run_events
from orchestrator.reports.ledger import FIRST, time_by_cause
from orchestrator.reports.loss_chart import loss_charts
from orchestrator.reports.node_map import node_map, ranges
from orchestrator.reports.post_mortem import post_mortem
from orchestrator.reports.record import RunRecord, lost_stretches
from orchestrator.reports.scales import Scale, loss_scale
from orchestrator.reports.what_if import what_if_of
from orchestrator.simulation.what_if import replay
from tests.plane import RUN_ID, at, attempts, finished_run, incident, restart
from tests.report_data import crashes, pending, record, series

HOSTILE = "<script>alert(1)</script>\"'&|`*_[x](javascript:alert(1))\x1b[31m\u202e $\\frac$"
VOID = {"meta", "br", "hr", "line", "rect", "path", "polygon", "circle"}


class Reader(html.parser.HTMLParser):
    """Checks that elements are closed in order, and collects what a page could load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag not in VOID or tag in {"path", "rect", "circle", "line"}:
            self.open.append(tag)
        for name, value in attrs:
            if name in {"src", "srcset", "data", "action"} or name.startswith("on"):
                self.loads.append(f"{name}={value}")
            if name == "href" and not value.startswith("#"):
                self.loads.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def made(of: RunRecord) -> report.Report:
    return report.make(of, what_if_of(of), "0.1.0")


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


def test_a_step_that_is_not_known_and_its_lost_steps_are_no_0() -> None:
    first, second = attempts()
    tries = [first, dataclasses.replace(second, restart=restart(resumed_step=None))]
    silent = record(entities=tries, best_step=0, instrumented=False)
    facts = dict(report.facts(made(silent)))
    shown = [facts[name] for name in ("step", "productive", "steps computed again")]
    assert shown == ["not known"] * 3
    assert dict(report.facts(made(record())))["steps computed again"] == "0"


def nothing() -> RunRecord:
    return record(
        entities=[], opened=[], stored=[], attempt=0, best_step=0, started_at=None, curve=series([])
    )


def hostile() -> RunRecord:
    bad = incident(
        reason=HOSTILE, subject=HOSTILE, acknowledged_by=HOSTILE, evidence={HOSTILE: HOSTILE}
    )
    first, last = attempts()
    tries = [first, type(last)(**{**fields_of(last), "restart": restart(reason=HOSTILE)})]
    return record(entities=tries, opened=[bad], reason=HOSTILE, owner=HOSTILE, name=HOSTILE)


def fields_of(entity: Any) -> dict[str, Any]:
    return {name: getattr(entity, name) for name in type(entity).__dataclass_fields__}


def many(ranks: int, **more: Any) -> RunRecord:
    tries, fields = crashes(50, 400.0, ranks=ranks, moved=True)
    return record(entities=tries, opened=[incident(id=f"i{n}") for n in range(300)], **fields)


WEIRD = {
    "finished": record,
    "pending": pending,
    "never started": nothing,
    "hostile": hostile,
    "no loss": lambda: record(curve=series([None] * 50, missing=[50] * 50)),
    "only NaN": lambda: record(
        curve=series([None] * 50), opened=[incident(kind=FindingKind.NON_FINITE, onset_step=1)]
    ),
    "one step": lambda: record(curve=series([2.0])),
    "flat": lambda: record(curve=series([2.0] * 9)),
    "negative": lambda: record(curve=series([-1.0, -5.0, 3.0])),
    "huge": lambda: record(curve=series([1e300, 1e-300, 0.0])),
    "50 restarts on 3,000 ranks": lambda: many(3000),
}


@functools.cache
def weird(which: str) -> report.Report:
    return made(WEIRD[which]())


@pytest.mark.parametrize("which", list(WEIRD))
def test_whatever_a_run_is_like_its_page_is_sound_and_asks_for_nothing(which: str) -> None:
    text = page.page(weird(which))
    reader = read(text)
    assert "script" not in reader.tags
    assert reader.loads == []
    assert len(reader.ids) == len(set(reader.ids))
    links = set(re.findall(r'href="#([^"]+)"', text))
    assert links <= set(reader.ids) | {f"event-{n}" for n in range(1, 152)}
    assert not re.search(r"https?://|url\(|@import", text)
    assert "nan" not in re.findall(r'(?:d|x|y|x1|x2|y1|y2|cx|cy)="[^"]*?(nan|inf)', text)
    assert len(text) < 2_000_000


@pytest.mark.parametrize("which", list(WEIRD))
def test_it_is_sound_as_markdown_and_as_a_picture_too(which: str) -> None:
    whole = weird(which)
    text = markdown.page(whole)
    assert "<script" not in text.replace(r"\<script", "")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) >= 3
    assert picture.draw(whole).startswith(b"\x89PNG")


def test_hostile_text_is_shown_as_it_is() -> None:
    reader = read(page.page(made(hostile())))
    assert "<script>alert(1)</script>" in reader.text
    assert "\x1b" not in reader.text
    assert "\u202e" not in reader.text


def test_times_add_up_to_the_wall_time_whatever_the_phases_say() -> None:
    found = record()
    ledger = time_by_cause(found)
    assert ledger.total == pytest.approx(found.wall_seconds)
    tries, fields = crashes(3, 400.0)
    found = record(entities=tries, **fields)
    ledger = time_by_cause(found)
    assert ledger.total == pytest.approx(found.wall_seconds)
    for bucket in ("lost", "starting", "restoring", "stalled"):
        together = sum(row.seconds[bucket] for row in ledger.rows)
        assert together == pytest.approx(ledger.buckets[bucket])
    signal = next(row for row in ledger.rows if row.cause == "signal")
    assert signal.restarts == 3
    assert signal.seconds["lost"] == pytest.approx(270)
    assert all(value >= 0 for row in ledger.rows for value in row.seconds.values())
    assert ledger.rows[-1].cause == FIRST or signal is ledger.rows[-1]


def test_a_recovery_under_way_counts_up_to_now() -> None:
    first, last = attempts()
    open_ = restart(stopped_at=at(61), placed_at=None, ready_at=None, restored_at=None,
                    recovered_at=None, resumed_step=None)  # fmt: skip
    tries = [first, type(last)(**{**fields_of(last), "restart": open_, "ended_at": None})]
    (row, *_) = time_by_cause(record(entities=tries)).rows
    assert row.seconds["starting"] > 0


def test_a_restart_and_its_incident_are_one_event_and_others_stand_alone() -> None:
    lonely = incident(id="01JNB00000000000000000LONE", kind=FindingKind.LOSS_BLIP, onset_step=150,
                      opened_at=at(150))  # fmt: skip
    back = restart(remedy=Remedy.ROLL_BACK, cause=Cause.ANOMALY)
    first, last = attempts()
    tries = [first, type(last)(**{**fields_of(last), "restart": back})]
    events = run_events(record(entities=tries, opened=[incident(), lonely]))
    assert [(e.number, e.tone, e.step) for e in events] == [
        (1, "rollback", 57),
        (2, "incident", 150),
    ]
    assert events[0].incident is not None


def test_an_incident_without_an_onset_is_at_the_step_of_its_time() -> None:
    events = run_events(record(opened=[incident(id="other", onset_step=None, opened_at=at(120))]))
    assert [event.step for event in events if event.restart is None] == [120]


def test_losses_that_are_not_finite_are_shown_and_not_joined() -> None:
    curve = curve_of(record(curve=series([3.0, 2.0, None, None, 1.0, *[1.0] * 40])))
    assert curve.lost == [(3, 4)]
    assert [line[0][0] for line in curve.lines] == [1, 5]


def test_a_point_of_many_samples_shows_that_one_is_not_finite() -> None:
    points = series([3.0, 2.0, 1.0], step=[100, 200, 300], missing=[0, 1, 0])
    assert curve_of(record(curve=points)).lost == [(101, 200)]


def test_a_script_that_reports_a_loss_now_and_then_has_no_gaps() -> None:
    losses = [2.0 if step % 10 == 0 else None for step in range(1, 101)]
    curve = curve_of(record(curve=series(losses)))
    assert curve.sparse
    assert curve.lost == []
    assert [len(line) for line in curve.lines] == [10]


def test_a_wide_range_of_losses_is_on_a_log_scale_with_ticks_inside() -> None:
    assert loss_scale([0.1, 5.0], 300, 0).log
    assert not loss_scale([2.0, 5.0], 300, 0).log
    assert not loss_scale([-1.0, 50.0], 300, 0).log
    for scale in (
        loss_scale([1e-9, 1e9], 300, 0),
        loss_scale([2.0, 2.0], 300, 0),
        Scale(0, 1, 0, 1),
    ):
        ticks = scale.ticks(7)
        assert 1 <= len(ticks) <= 8
        assert all(scale.low <= tick <= scale.high for tick in ticks)
        assert scale(scale.low) == scale.begin
        assert scale(scale.high) == scale.end
        assert math.isfinite(scale((scale.low + scale.high) / 2))


def test_nodes_say_which_ranks_they_held_and_those_alike_are_one_row() -> None:
    rows = {row.name: row for row in node_map(record()).rows}
    assert rows["node-1"].held == "attempts 1-2: rank 0"
    assert [stay.failed for stay in rows["node-2"].stays] == [True, False]
    big = node_map(many(3000))
    assert big.rows[-1].name.startswith("374 other nodes: node-2")
    assert [row.name for row in big.rows[:2]] == ["node-1", "spare-2"]
    assert ranges([3, 1, 2, 9]) == "1-3, 9"


def test_the_longest_lost_stretches_are_asked_for() -> None:
    views = many(2).run.restarts
    assert lost_stretches(views, 2) == [(49, 19510), (50, 19910)]


def test_more_frequent_saves_would_have_saved_the_steps_that_were_lost() -> None:
    tries, fields = crashes(6, 1000.0)
    found = what_if_of(record(entities=tries, opened=[], **fields))
    by_setting = {option.setting: option for option in found.options}
    best = next(option for name, option in by_setting.items() if "Young" in name)
    assert best.saved is not None
    assert 150 < best.saved < 540  # of the 540 s that were computed again
    rare = by_setting["every 400 steps"]
    assert rare.saved is not None
    assert rare.saved < -150
    assert "spares would have saved nothing" in " ".join(found.sentences)
    first = found.options[0]
    assert first.seconds == pytest.approx(7000, rel=0.06)


def test_of_a_run_that_left_nodes_spares_are_replayed_too() -> None:
    tries, fields = crashes(3, 1000.0, moved=True)
    found = what_if_of(record(entities=tries, opened=[], **fields))
    assert {"1 more standby", "2 more standbys"} <= {option.setting for option in found.options}
    assert "spares would have saved nothing" not in " ".join(found.sentences)


@pytest.mark.parametrize(
    ("of", "why"),
    [
        (lambda: record(entities=attempts()[:1], opened=[], attempt=1), "no failure of the run"),
        (pending, "no step of the run"),
        (lambda: record(spec=finished_run().spec), "saved no checkpoints"),
    ],
)
def test_nothing_is_claimed_where_nothing_is_known(of: Any, why: str) -> None:
    found = what_if_of(of())
    assert found.options == ()
    assert why in " ".join(found.sentences)


def test_nothing_is_claimed_if_the_replay_of_the_run_itself_fails() -> None:
    tries, fields = crashes(2, 400.0)

    def lost(recording: Any, settings: Any) -> Any:
        return dataclasses.replace(replay(recording, settings), seconds=None)

    outcome = what_if_of(record(entities=tries, **fields), lost)
    assert outcome.options == ()
    assert "does not describe it" in outcome.sentences[0]


def test_failures_that_do_not_strike_in_the_replay_are_said() -> None:
    tries, fields = crashes(2, 400.0)

    def missed(recording: Any, settings: Any) -> Any:
        return dataclasses.replace(replay(recording, settings), struck=1)

    outcome = what_if_of(record(entities=tries, **fields), missed)
    assert "Of 2 recorded failures, 1 struck in the replay." in outcome.sentences[0]
    assert (
        "2 recorded failures replayed" in what_if_of(record(entities=tries, **fields)).sentences[0]
    )


def test_a_reason_without_a_curve_is_escaped_in_markdown() -> None:
    held = record(entities=[], attempt=0, curve=series([]), reason=HOSTILE)
    text = markdown.page(report.make(held, what_if_of(held), "1"))
    assert "has not started: \\<script\\>" in text
    assert "<script>" not in text


def test_values_of_the_environment_stay_out_of_a_report() -> None:
    secret = finished_run().spec.model_copy(update={"env": {"WANDB_API_KEY": "s3cret"}})
    whole = made(record(spec=secret))
    assert "WANDB_API_KEY" in page.page(whole)
    assert "s3cret" not in page.page(whole) + markdown.page(whole)


def entry(seconds: float, name: str, actor: str = "operator:mia", **payload: Any) -> EventView:
    return EventView(
        position=1, id=f"{seconds}", at=at(seconds), run=RUN_ID, attempt=1, actor=actor,
        kind="event", name=name, cause=None, reason="", payload=payload,
    )  # fmt: skip


def test_a_post_mortem_tells_what_was_seen_decided_and_asked_and_what_is_open() -> None:
    of = record()
    about = of.incidents[0].id
    journal = [
        entry(60, "rank_exited", rank=1, failure={"reason": "killed by SIGKILL"}),
        entry(60.1, "rank_exited", rank=0, failure={"reason": "stopped by the agent"}),
        entry(60.2, "notify", "controller", incident=about, channel="#train", text="it died",
              severity="warning", asks=True),
        entry(60.3, "notify", "controller", incident="another", channel="#x", text="not this"),
        entry(60.5, "incident_changed", incident=about, acknowledge=True),
        entry(9000, "incident_changed", incident=about, verdict="right"),
    ]  # fmt: skip
    text = post_mortem(of, of.incidents, journal, "0.1.0")
    assert "- 2026-03-01 03:13:00 Rank 1 exited: killed by SIGKILL." in text
    assert "stopped by the agent" not in text
    assert "| 2026-03-01 03:13:00 | \\#train | it died | yes |" in text
    assert "not this" not in text
    assert "mia acknowledged the incident." in text
    assert "mia judged it right." in text
    assert "| detect | stop | place | start | restore | recompute | together |" in text
    assert text.count("- [ ] ") >= 5
    assert "_To fill in" in text


def test_a_post_mortem_of_a_run_without_incidents_says_so() -> None:
    assert "The run has no incident." in post_mortem(record(opened=[]), [], [], "0.1.0")


def test_evidence_cannot_leave_its_block() -> None:
    bad = incident(evidence={"log": "```\n# A title of a rank\n````"})
    of = record(opened=[bad])
    text = post_mortem(of, of.incidents, [], "0.1.0")
    assert "`````text\nlog: ```\n# A title of a rank\n````\n`````" in text


def test_a_logbook_as_markdown_is_a_list_of_plain_sentences() -> None:
    of = hostile()
    text = markdown.logbook(of.run.name, of.run.state, of.story)
    assert text.startswith("# Logbook of \\<script")
    assert all(line.startswith("- 2026-03-01 03:1") for line in text.splitlines()[2:-2])


def test_restarts_have_their_numbers_among_hundreds_of_incidents() -> None:
    tries, fields = crashes(20, 1000.0)
    noise = [
        incident(id=f"i{n}", kind=FindingKind.LOSS_BLIP, onset_step=50 * n, opened_at=at(50 * n))
        for n in range(400)
    ]
    whole = made(record(entities=tries, opened=noise, curve=series([2.0] * 20_000), **fields))
    wide = loss_charts(whole.curve, whole.events, []).split("<svg")[1]
    shown = set(map(int, re.findall(r'class="in-badge">(\d+)<', wide)))
    assert {event.number for event in whole.restarts} <= shown
    assert len(shown) < 150
