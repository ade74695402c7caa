"""Rules: what dying software prints, as data. A pattern speaks for a class, with a strength.

The problem: messages change with every release and differ by cluster, so they must not be code.
The design: `monitors/rules/*.yaml` holds the rules that come with babysit; a cluster and a run may
put rules of their own before them, or replace one by its name. This module describes and compiles
them; it reads no files. Limits: a rule sees one line at a time (`needs` asks for another one
anywhere in the log).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from monitors import patterns
from monitors.benign_lines import is_harmless, was_survived
from monitors.failures import Advice, FailureClass
from monitors.log_lines import LogLevel, as_line


class Strength(IntEnum):
    """How strongly a message speaks for its class."""

    AFTERMATH = 10
    """Printed because something else failed; no root cause while another line matches."""
    HINT = 30
    """Believed when there is nothing better."""
    SYMPTOM = 40
    """True, but seen from a distance: the cause may be named elsewhere in the log."""
    LIKELY = 65
    """Printed for this cause nearly always."""
    SPECIFIC = 80
    """Printed for this cause only."""
    PROOF = 90
    """The hardware, the kernel or the resource manager is quoted."""


def _lines(value: object) -> object:
    """A text of one pattern a line, as a list."""
    if isinstance(value, str):
        return [line.strip() for line in value.splitlines() if line.strip()]
    return value


_LEVELS = {"error": LogLevel.PLAIN, "warning": LogLevel.WARNING, "any": LogLevel.DEBUG}


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class LogRule(_Model):
    """Messages of one strength that speak for one class."""

    name: str = Field(pattern=r"^[\w][\w .-]*$", description="Replaces the rule of that name.")
    failure_class: FailureClass | Literal["harmless"] = Field(
        alias="class", description="harmless: such lines are ignored."
    )
    strength: Literal["proof", "specific", "likely", "symptom", "hint", "aftermath"] = "specific"
    match: Annotated[tuple[str, ...], BeforeValidator(_lines)] = Field(
        min_length=1,
        description="Regular expressions, one a line or a list; searched without regard to case.",
    )
    needs: str | None = Field(default=None, description="Must also occur somewhere in the log.")
    unless: str | None = Field(default=None, description="Must not occur in the line.")
    action: Advice | None = Field(default=None, description="Instead of the action of the class.")
    severity: Literal["error", "warning", "any"] = Field(
        default="error",
        description="Lowest severity that a line must state (without one it counts as an error);"
        " any: INFO counts too.",
    )
    examples: tuple[str, ...] = Field(default=(), description="Lines that must match.")
    counterexamples: tuple[str, ...] = Field(default=(), description="Lines that must not count.")

    @field_validator("match", "needs", "unless")
    @classmethod
    def _are_patterns(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        patterns.check(value)
        return value

    @model_validator(mode="after")
    def _examples_hold(self) -> LogRule:
        rule = CompiledRule.of(self)
        for line in self.examples:
            if not rule.matches(line):
                raise ValueError(f"the rule {self.name} does not match its example: {line}")
        for line in self.counterexamples:
            if rule.matches(line) and not _is_cleared(line):
                raise ValueError(f"the rule {self.name} matches its counterexample: {line}")
        return self


def _is_cleared(text: str) -> bool:
    line = as_line(text)
    return is_harmless(line) or was_survived(line)


class HyperPodRule(_Model):
    """An entry of SageMaker HyperPod's `logMonitoringConfiguration`, by its own field names.

    Only `faultOnMatch` says something about a death, and is used here: the run is restarted. The
    others watch a log while it grows, which babysit does by other means; they are accepted and do
    nothing.
    """

    name: str
    log_pattern: str = Field(alias="logPattern")
    fault_on_match: bool = Field(default=False, alias="faultOnMatch")
    expected_start: float | None = Field(default=None, alias="expectedStartCutOffInSeconds")
    expected_recurring: float | None = Field(
        default=None, alias="expectedRecurringFrequencyInSeconds"
    )
    metric_threshold: float | None = Field(default=None, alias="metricThreshold")
    operator: str | None = None
    stop_pattern: str | None = Field(default=None, alias="stopPattern")
    data_points: int | None = Field(default=None, alias="metricEvaluationDataPoints")

    def rule(self) -> LogRule | None:
        """The rule in babysit's own form; None if the foreign rule says nothing about a death."""
        if not self.fault_on_match:
            return None
        name = re.sub(r"[^\w .-]", "-", self.name)
        return LogRule(
            name=name,
            failure_class=FailureClass.UNKNOWN,
            strength="proof",
            match=(self.log_pattern,),
            action=Advice.RETRY,
            severity="any",
        )


class RuleFile(_Model):
    """One file of rules."""

    rules: tuple[LogRule, ...] = ()
    xids: dict[FailureClass | Literal["harmless"], tuple[int, ...]] = Field(
        default_factory=dict, description="Classes of Xids of the NVIDIA driver, by number."
    )
    log_monitoring: tuple[HyperPodRule, ...] = Field(
        default=(), alias="logMonitoringConfiguration", description="Rules of SageMaker HyperPod."
    )

    @model_validator(mode="after")
    def _is_not_empty(self) -> RuleFile:
        if not (
            self.rules or self.xids or any(each.fault_on_match for each in self.log_monitoring)
        ):
            raise ValueError(
                "holds no rule for the end of a log: give rules, xids, or entries of"
                " logMonitoringConfiguration with faultOnMatch: true"
            )
        return self

    def all_rules(self) -> tuple[LogRule, ...]:
        """The rules, those of HyperPod translated."""
        translated = [each.rule() for each in self.log_monitoring]
        return (*self.rules, *(rule for rule in translated if rule is not None))


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """A rule, ready to be searched."""

    name: str
    failure_class: FailureClass | None
    """None: harmless."""
    strength: int
    pattern: re.Pattern[str]
    needs: re.Pattern[str] | None
    unless: re.Pattern[str] | None
    action: Advice | None
    level: LogLevel
    """Lines that say they are less grave do not count."""

    @classmethod
    def of(cls, rule: LogRule) -> CompiledRule:
        """Compile one rule."""

        def compiled(pattern: str | None) -> re.Pattern[str] | None:
            return re.compile(pattern, re.IGNORECASE) if pattern else None

        harmless = rule.failure_class == "harmless"
        return cls(
            name=rule.name,
            failure_class=None if harmless else FailureClass(rule.failure_class),
            strength=Strength[rule.strength.upper()],
            pattern=re.compile("|".join(f"(?:{each})" for each in rule.match), re.IGNORECASE),
            needs=compiled(rule.needs),
            unless=compiled(rule.unless),
            action=rule.action,
            level=_LEVELS[rule.severity],
        )

    def matches(self, text: str) -> bool:
        """True if the rule covers the line."""
        if self.pattern.search(text) is None:
            return False
        return self.unless is None or self.unless.search(text) is None


_XID = re.compile(r"\bXid\b\s*(?:\([^)]*\)\s*)?:?\s*(?P<code>\d{1,3})\b", re.IGNORECASE)


class RuleSet:
    """Rules in the order in which they are asked: a run's, a cluster's, babysit's own.

    Raises:
        ValueError: there is no rule that speaks for a class. Without rules every death would be
            unexplained, and nobody would notice.
    """

    def __init__(
        self,
        rules: Iterable[LogRule],
        xids: Mapping[FailureClass | Literal["harmless"], Sequence[int]] | None = None,
    ) -> None:
        first: dict[str, LogRule] = {}
        for rule in rules:
            first.setdefault(rule.name, rule)
        compiled = [CompiledRule.of(rule) for rule in first.values()]
        self.harmless = tuple(rule for rule in compiled if rule.failure_class is None)
        self.rules = tuple(rule for rule in compiled if rule.failure_class is not None)
        if not self.rules:
            raise ValueError("the rules for logs are empty: no rule speaks for a class")
        self._source = tuple(first.values())
        self._xids = {code: named for named, codes in (xids or {}).items() for code in codes}

    def extended(
        self,
        rules: Iterable[LogRule],
        xids: Mapping[FailureClass | Literal["harmless"], Sequence[int]] | None = None,
    ) -> RuleSet:
        """With rules before these; a rule of the same name replaces the one here."""
        old: dict[FailureClass | Literal["harmless"], list[int]] = {}
        for code, named in self._xids.items():
            old.setdefault(named, []).append(code)
        merged = RuleSet((*rules, *self._source), old)
        merged._xids |= {code: named for named, codes in (xids or {}).items() for code in codes}
        return merged

    def wanted(self, log: str) -> tuple[CompiledRule, ...]:
        """The rules whose `needs` the log meets."""
        return tuple(rule for rule in self.rules if rule.needs is None or rule.needs.search(log))

    def is_harmless(self, text: str) -> bool:
        """True if a rule says that such lines mean nothing."""
        return any(rule.matches(text) for rule in self.harmless)

    def xid_class(self, text: str) -> FailureClass | Literal["harmless"] | None:
        """The class of the Xid that a line holds; None where it holds none."""
        found = _XID.search(text)
        if found is None:
            return None
        return self._xids.get(int(found["code"]), FailureClass.GPU_HARDWARE)
