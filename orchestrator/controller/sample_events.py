"""The core's events in the samples of a report, drawn one at a time."""

from __future__ import annotations

from collections import deque

from jobs.events import Event, Report
from monitors.types import Finding, Sample
from orchestrator.controller.sample_columns import sort_samples
from orchestrator.controller.sample_pipeline import MakeEvent, RunSamplePipeline
from orchestrator.core.messages.events import FindingRaised, StepReached
from orchestrator.core.model.entities import Attempt


class SampleEvents:
    """The core's events in the samples of one report: steps and findings, one at a time.

    A finding comes before the step at which it was detected, since steps after an onset make no
    checkpoint good. Whether a step is an event depends on the milestone, which the core moves as
    it handles the event before. So this class cannot be iterated: each call is given the attempt
    as it is now, and collecting all events ahead is not possible.

    Keeps the pipeline it began with. Where the core fails in the middle, the state and its
    pipelines are loaded again, and the new pipeline has seen the whole report (`take_again`).
    """

    def __init__(
        self, run: str, pipeline: RunSamplePipeline, report: Report, make: MakeEvent
    ) -> None:
        self.run = run
        self._pipeline, self._report, self._make = pipeline, report, make
        self._findings: deque[Finding] | None = None
        """None: the monitors have not seen the samples yet."""
        self._steps: deque[Sample] = deque()

    def next(self, attempt: Attempt | None) -> Event | None:
        """The next event, given the newest attempt of the run as it is now; None: no more.

        The first call feeds the monitors.
        """
        if self._findings is None:
            samples = sort_samples(self._report.attempt, self._report.samples)
            if attempt and self._report.attempt <= attempt.number:
                # The database refuses samples of an attempt that it does not know (a backup was
                # restored): a rank of which nothing is stored does not speak for the run.
                self._pipeline.kept.hear(self._report.attempt, self._report.samples)
            found = [*self._pipeline.observe(samples), *self._pipeline.compare(self._report)]
            self._findings = deque(sorted(found, key=lambda finding: finding.detected_step))
            for finding in self._findings:
                self._pipeline.kept.witness(finding.detected_step)
            self._steps.extend(samples)
        while self._steps:
            if self._findings and self._findings[0].detected_step <= self._steps[0].step:
                return self._raised(self._findings.popleft())
            sample = self._steps.popleft()
            progress = self._pipeline.note(sample)
            if attempt and attempt.number == sample.attempt and sample.step >= attempt.milestone:
                fields = self._pipeline.fields(progress)
                return self._make(StepReached, run=self.run, attempt=progress.attempt, **fields)
        return self._raised(self._findings.popleft()) if self._findings else None

    def _raised(self, finding: Finding) -> Event:
        return self._make(
            FindingRaised,
            run=self.run,
            attempt=finding.attempt,
            finding=finding,
            actor=f"monitor:{finding.kind}",
        )
