"""The hang monitor, under a clock that the test turns."""

from __future__ import annotations

import pytest

from babysit.wire import Phase
from monitors.hang import HangMonitor, HangSettings
from monitors.types import Beat, FindingKind, Sample, Severity


class Run:
    """Ranks that beat as the test says, ticked once a second."""

    def __init__(self, world=2, settings=None, attempt=1, step_seconds=0.1, steps=20):
        self.monitor = HangMonitor(settings)
        self.now = 1000.0
        self.attempt = attempt
        self.step = 0
        self.beats = {r: self._beat(r, Phase.TRAINING) for r in range(world)}
        self.monitor.restart(attempt)
        for _ in range(steps):
            self.advance(seconds=step_seconds)

    def _beat(self, rank, phase, step=None, alive=True):
        step = self.step if step is None else step
        return Beat(
            attempt=self.attempt, rank=rank, step=step, phase=phase, beat=self.now, alive=alive
        )

    def advance(self, *, ranks=None, seconds=0.1, blocked=0.0):
        """The ranks end one more step."""
        self.step += 1
        for rank in self.beats if ranks is None else ranks:
            self.beats[rank] = self._beat(rank, Phase.TRAINING)
        self.monitor.observe(
            Sample(
                attempt=self.attempt,
                rank=0,
                step=self.step,
                batch=self.step,
                time=self.now,
                loss=1.0,
                seconds=seconds,
                blocked_seconds=blocked,
            )
        )

    def phase(self, rank, phase):
        self.beats[rank] = self._beat(rank, phase)

    def tick(self, seconds=1.0):
        self.now += seconds
        return self.monitor.tick(self.now, list(self.beats.values()))

    def silence(self, seconds):
        """Nothing beats for a while; `(seconds until the first finding, findings)`."""
        found, after = [], None
        for second in range(1, int(seconds) + 1):
            found += self.tick()
            if found and after is None:
                after = second
        return after, found


def test_a_fast_run_is_found_hung_within_five_seconds_once():
    run = Run()
    run.tick()
    after, found = run.silence(60)
    assert 3 <= after <= 5
    (hang,) = found
    assert hang.kind is FindingKind.HANG
    assert hang.severity is Severity.CRITICAL
    assert hang.rank is None, "all ranks stand at the same step"
    assert hang.onset_step == 20
    assert "no progress on 2 of 2 ranks" in hang.reason
    assert "after step 20 (limit 3.0 s, median step 0.1 s)" in hang.reason
    assert [r["silent_seconds"] for r in hang.evidence["ranks"]] == [after, after]


def test_the_limit_follows_the_run_s_own_pace():
    run = Run(step_seconds=10.0)
    run.tick()
    assert run.monitor.median_step_seconds == 10.0
    after, _ = run.silence(100)
    assert after == 51  # five times the median


def test_steps_that_are_long_now_and_then_are_normal():
    run = Run(step_seconds=0.1, steps=90)
    for _ in range(10):
        run.advance(seconds=20.0)
    run.tick()
    after, _ = run.silence(100)
    assert after == 41  # twice the 99th percentile


def test_the_time_that_saves_block_is_no_part_of_the_pace():
    run = Run(steps=0)
    for _ in range(20):
        run.advance(seconds=5.1, blocked=5.0)
    assert run.monitor.median_step_seconds == pytest.approx(0.1)


def test_a_stated_limit_is_obeyed():
    run = Run(settings=HangSettings(after_seconds=20))
    run.tick()
    assert run.silence(60)[0] == 21


def test_the_rank_that_is_behind_is_the_suspect():
    run = Run(world=4)
    run.advance(ranks=[0, 1, 3])
    run.tick()
    _, (hang,) = run.silence(30)
    assert hang.rank == 2
    assert "rank 2 is behind" in hang.reason
    assert hang.onset_step == 20
    assert hang.detected_step == 21


def test_one_silent_rank_among_living_ones_is_the_suspect():
    run = Run(world=3)
    run.tick()
    found = []
    for _ in range(10):
        run.advance(ranks=[0, 2])
        found += run.tick()
    assert [f.rank for f in found] == [1]


def test_a_silent_rank_at_the_step_of_the_others_is_not_called_behind():
    run = Run(world=2)
    run.tick()
    found = []
    for _ in range(10):
        run.phase(0, Phase.TRAINING)  # a sign of life without a step
        found += run.tick()
    assert [f.rank for f in found] == [1]
    assert "rank 1 is the silent one" in found[0].reason


def test_progress_ends_the_hang_and_the_next_is_a_new_one():
    run = Run()
    run.tick()
    assert len(run.silence(30)[1]) == 1
    run.advance()
    assert run.tick() == []
    assert len(run.silence(60)[1]) == 1


def test_a_pause_that_came_twice_is_part_of_the_pace():
    """A validation, an upload: it raises suspicion twice, and then no more."""
    run = Run()
    found = []
    for _ in range(5):
        run.tick()
        found.append(len(run.silence(20)[1]))
        run.advance()
    assert found == [1, 1, 0, 0, 0]
    assert run.monitor.longest_pause == 20
    run.tick()
    assert run.silence(60)[0] == 31, "one and a half times the pause"


def test_before_the_first_step_of_an_attempt_the_limit_is_that_of_starting():
    run = Run()
    run.attempt = 2
    run.monitor.restart(2)
    for rank in (0, 1):
        run.phase(rank, Phase.STARTING)
    run.tick()
    assert run.silence(29)[1] == []
    for rank in (0, 1):
        run.phase(rank, Phase.TRAINING)
    assert run.silence(29)[1] == [], "the first step compiles and connects"
    run.advance()
    run.tick()
    assert run.silence(10)[0] == 4, "then the pace of the attempts before counts"


@pytest.mark.parametrize(("starting", "suspected"), [(600.0, 31), (10.0, 11)])
def test_silence_while_starting_raises_suspicion(starting: float, suspected: int) -> None:
    run = Run(steps=0, settings=HangSettings(starting_seconds=starting))
    run.phase(0, Phase.STARTING)
    run.phase(1, Phase.STARTING)
    run.tick()
    after, (hang,) = run.silence(700)
    assert after == suspected
    assert hang.evidence["starting"]


def test_a_peer_that_still_starts_excuses_those_that_wait_for_it():
    run = Run()
    run.phase(1, Phase.RESTORING)
    run.tick()
    assert run.silence(29)[1] == []


def test_the_first_checkpoint_is_given_time_and_the_next_what_the_others_took():
    run = Run()
    for rank in (0, 1):
        run.phase(rank, Phase.CHECKPOINTING)
    run.tick()
    run.silence(500)
    run.advance(seconds=4.1, blocked=4.0)
    run.tick()
    for rank in (0, 1):
        run.phase(rank, Phase.CHECKPOINTING)
    run.tick()
    limit = run.monitor.limit(Phase.CHECKPOINTING)
    assert limit >= 5 * 500, "the first one took 500 s, as seen from outside"


def test_short_saves_make_a_short_limit_with_a_floor():
    run = Run(steps=0)
    for _ in range(20):
        run.advance(seconds=0.15, blocked=0.05)
    assert run.monitor.limit(Phase.CHECKPOINTING) == 10.0


def test_evaluations_have_a_limit_learned_from_their_length():
    run = Run()
    for rank in (0, 1):
        run.phase(rank, Phase.EVALUATING)
    run.tick()
    run.silence(100)
    run.advance()
    run.tick()
    assert run.monitor.limit(Phase.EVALUATING) == pytest.approx(5 * 101, rel=0.02)


def test_a_rank_that_lingers_after_the_last_step_raises_suspicion():
    """A thread that keeps the process alive holds the node for ever."""
    run = Run()
    for rank in (0, 1):
        run.phase(rank, Phase.FINISHED)
    run.tick()
    assert run.silence(3000)[0] == 31


def test_a_finished_rank_does_not_excuse_a_hung_one():
    run = Run()
    run.phase(0, Phase.FINISHED)
    run.tick()
    _, (hang,) = run.silence(30)
    assert hang.rank == 1


def test_a_dead_rank_is_not_judged():
    run = Run(world=2)
    run.beats[1] = run._beat(1, Phase.TRAINING, alive=False)
    run.tick()
    _, (hang,) = run.silence(30)
    assert [r["rank"] for r in hang.evidence["ranks"]] == [0]


def test_losing_contact_is_no_hang_and_starts_anew_on_return():
    run = Run()
    run.tick()
    run.silence(2)
    for _ in range(100):
        run.now += 1
        assert run.monitor.tick(run.now, []) == []
    assert run.silence(3)[1] == []
    assert run.silence(3)[0] == 2


def test_a_control_plane_that_slept_does_not_call_its_runs_hung():
    run = Run()
    run.tick()
    assert run.tick(seconds=3600.0) == [], "one look with old beats proves nothing"
    run.advance()
    assert run.tick() == []


def test_the_clocks_of_the_nodes_do_not_matter():
    run = Run()
    run.beats = {r: b._replace(beat=b.beat - 86_400) for r, b in run.beats.items()}
    run.tick()
    assert run.silence(2)[1] == []


def test_beats_of_older_attempts_are_ignored():
    run = Run()
    old = list(run.beats.values())
    run.monitor.restart(2)
    for second in range(1000):
        assert run.monitor.tick(2000.0 + second, old) == []


def test_without_any_step_time_the_limit_of_starting_holds_in_training():
    run = Run(steps=2)
    run.tick()
    assert run.silence(700)[0] == 31


def test_silence_of_a_rank_that_never_moved_says_nothing() -> None:
    """Only rank 0 reports: its peers beat once, when they join, and are as healthy as it is."""
    monitor = HangMonitor()
    for step in range(1, 200):
        told = {"time": float(step), "loss": 1.0, "seconds": 0.1}
        monitor.observe(Sample(attempt=1, rank=0, step=step, batch=step, **told))
        beats = [
            Beat(attempt=1, rank=0, step=step, phase="training", beat=float(step)),
            Beat(attempt=1, rank=1, step=0, phase="training", beat=0.0, moved=False),
        ]
        assert monitor.tick(float(step), beats) == []


def test_the_pace_of_ranks_that_only_draw_is_learned_from_their_beats() -> None:
    monitor = HangMonitor()
    for now in range(1, 60):
        done = [Beat(attempt=1, rank=r, step=10 * now, phase="loading", beat=now) for r in (0, 1)]
        assert monitor.tick(float(now), done) == []
    assert monitor.median_step_seconds == pytest.approx(0.1)
    still = [Beat(attempt=1, rank=r, step=600 - r, phase="training", beat=60.0) for r in (0, 1)]
    found = [f for now in range(60, 70) for f in monitor.tick(float(now), still)]
    assert [(f.kind, f.rank) for f in found] == [(FindingKind.HANG, 1)]


def test_starts_and_evaluations_of_earlier_attempts_are_learned() -> None:
    run = Run(steps=0)
    run.tick(seconds=1.0)
    run.silence(7)
    run.advance()
    run.tick()
    for rank in (0, 1):
        run.phase(rank, Phase.EVALUATING)
    run.tick()
    run.silence(25)
    run.advance()
    run.tick()
    run.attempt = 2
    run.monitor.restart(2)
    for rank in (0, 1):
        run.phase(rank, Phase.STARTING)
    run.tick()
    _, (hang,) = run.silence(60)
    assert 7 <= hang.evidence["longest_start_seconds"] <= 10
    assert 25 <= hang.evidence["longest_pause_seconds"] <= 28


@pytest.mark.parametrize("phase", [Phase.EVALUATING, Phase.CHECKPOINTING, Phase.FINISHED])
def test_a_phase_never_seen_to_end_has_the_limit_of_starting(phase: Phase) -> None:
    """Nothing tells how long a first evaluation, a first save or a last export may take."""
    run = Run()
    run.tick()
    for rank in (0, 1) if phase is Phase.FINISHED else (0,):
        run.phase(rank, phase)
    _, (hang,) = run.silence(300)
    assert hang.evidence["starting"]


def test_the_limit_of_a_phase_follows_the_longest_one_seen() -> None:
    run = Run()
    run.tick()
    run.phase(0, Phase.EVALUATING)
    run.silence(100)
    run.advance()
    run.tick()
    run.phase(0, Phase.EVALUATING)
    _, found = run.silence(600)
    assert not found[-1].evidence["starting"]
    assert found[-1].evidence["longest_pause_seconds"] == pytest.approx(100, abs=2)


def test_pauses_of_the_first_five_steps_are_those_of_a_start() -> None:
    """A program compiles for each new shape: its second step may take longer than its first."""
    run = Run(steps=0)
    run.advance()
    run.tick()
    run.advance()
    run.tick()
    _, (hang,) = run.silence(40)
    assert hang.evidence["starting"], "in the third step"
    run.advance()
    run.tick()
    assert run.monitor.pace.start == pytest.approx(40, abs=2)
    for _ in range(3):
        run.advance()
    run.tick()
    _, (hang,) = run.silence(40)
    assert not hang.evidence["starting"]


def test_a_stated_limit_holds_from_the_second_step_on() -> None:
    run = Run(settings=HangSettings(after_seconds=5), steps=2)
    run.tick()
    after, (hang,) = run.silence(40)
    assert after == 6
    assert not hang.evidence["starting"]


def test_a_new_run_of_a_name_has_the_limits_that_others_learned() -> None:
    run = Run()
    run.tick()
    run.phase(0, Phase.EVALUATING)
    run.silence(200)
    run.advance()
    run.tick()
    later = Run()
    later.monitor = HangMonitor(known=run.monitor.pace)
    later.advance()
    later.tick()
    later.phase(0, Phase.EVALUATING)
    after, (hang,) = later.silence(1200)
    assert after == pytest.approx(5 * 200, abs=10), "five times what an earlier run took"
    assert hang.evidence["longest_pause_seconds"] == pytest.approx(200, abs=2)
