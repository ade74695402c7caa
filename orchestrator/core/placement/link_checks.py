"""The measurement of a link between two idle nodes, and its consequences.

One node listens and says where; then the other connects, and its results count for both. A bad
link makes both suspects, which :mod:`orchestrator.core.placement.link_pairs` tries with others
next; a node is cordoned when :mod:`orchestrator.core.placement.link_verdicts` has evidence against
it. An end that leaves, gives way to a run or never comes ends the measurement without a verdict.
"""

from __future__ import annotations

from collections.abc import Iterable

from jobs.checks.measurement import LATENCY, RATE
from jobs.checks.results import LINK, CheckResult, Verdict
from orchestrator.core.messages.instructions import CheckNode
from orchestrator.core.model.checking import CheckPurpose, CheckUnderWay, LinkTrial
from orchestrator.core.model.entities import Node
from orchestrator.core.placement import check_verdicts, link_pairs, link_verdicts, node_checks
from orchestrator.core.text import time_mark
from orchestrator.core.turn import Turn

NO_RESULTS = "the program that measures the link had no results"


def start(turn: Turn, node: Node, partner: Node) -> None:
    """Have the link between two idle nodes measured; the partner listens."""
    for each, other in ((partner, node), (node, partner)):
        worker = f"link-{each.id}-{time_mark(turn.now)}"
        under_way = CheckUnderWay(
            worker=worker,
            since=turn.now,
            purpose=CheckPurpose.LINK,
            checks=(LINK,),
            partner=other.id,
            listens=each is partner,
        )
        node_checks.note(turn, each, under_way=under_way)
    _launch(turn, turn.state.nodes[partner.id], f"{partner.id} waits for {node.id}")


def _launch(turn: Turn, node: Node, why: str, peer: str = "") -> None:
    under_way = node.measured.under_way
    if under_way is not None:
        turn.emit(
            CheckNode,
            None,
            f"the link of {node.id} is measured: {why}",
            worker=under_way.worker,
            node=node.id,
            gpus=node.gpus,
            checks=(LINK,),
            peer=peer,
        )


def on_listening(turn: Turn, node: Node, peer: str) -> None:
    """Start the end that connects, now that the other listens. Started twice, it runs once."""
    under_way = node.measured.under_way
    partner = turn.state.nodes.get(under_way.partner) if under_way is not None else None
    if partner is not None and _is_paired(partner, node):
        _launch(turn, partner, f"it connects to {node.id}", peer)


def _is_paired(node: Node, partner: Node) -> bool:
    under_way = node.measured.under_way
    return under_way is not None and under_way.partner == partner.id


def on_results(
    turn: Turn, node: Node, under_way: CheckUnderWay, results: tuple[CheckResult, ...]
) -> None:
    """One end is done. The end that listened knows only whether the other came."""
    partner = turn.state.nodes.get(under_way.partner)
    untried = [result.reason for result in results if result.verdict is Verdict.SKIPPED]
    if untried or not results or partner is None:
        node_checks.end_untried(turn, node, untried[0] if untried else NO_RESULTS)
        return
    node = node_checks.end(turn, node, f"{node.id} has measured its link to {partner.id}")
    if under_way.listens:
        return
    if _is_paired(partner, node):
        partner = node_checks.end(turn, partner, f"{node.id} has measured its link to {partner.id}")
    _store(turn, node, partner, results)
    _look_for_culprits(turn, (node.id, partner.id))


def _store(turn: Turn, node: Node, partner: Node, results: Iterable[CheckResult]) -> None:
    """Keep the results of a pair at both ends, or at the one that is known to be bad."""
    judged = link_verdicts.judge((node, partner), results, turn.state.nodes.values())
    pair = ((node, partner), (partner, node))
    known = [each for each in pair if link_verdicts.is_away(each[0])]
    for each, other in known if judged.bad and known else pair:
        rows = tuple(_row(result, judged.bad, each, other) for result in judged.results)
        trial = LinkTrial(at=turn.now, partner=other.id, bad=judged.bad)
        kept = node_checks.note(
            turn,
            each,
            results=check_verdicts.merged(each.measured.results, rows, turn.now),
            links=link_verdicts.with_trial(each.measured, trial),
            link_at=turn.now,
            unchecked="",
        )
        if not judged.bad:
            node_checks.return_if_sound(turn, kept)
    if judged.bad:
        turn.record(None, f"the link between {node.id} and {partner.id} is bad: {judged.bad}")


def _row(result: CheckResult, bad: str, node: Node, partner: Node) -> CheckResult:
    """A result as it stands with one of the two nodes."""
    if not bad:
        return result.model_copy(update={"peer": partner.id})
    if link_verdicts.is_away(node):
        verdict, why = Verdict.FAILED, f"{bad} (with {partner.id})"
    else:
        verdict = Verdict.SKIPPED
        why = f"{bad}: {node.id}, {partner.id} or the way between; a third idle node decides"
    return result.model_copy(update={"peer": partner.id, "verdict": verdict, "reason": why})


def _look_for_culprits(turn: Turn, pair: tuple[str, str]) -> None:
    """Judge the pair and all partners of the two: a good link may prove another bad."""
    names = dict.fromkeys(pair)
    for name in pair:
        names |= dict.fromkeys(each.partner for each in turn.state.nodes[name].measured.links)
    for name in names:
        node = turn.state.nodes.get(name)
        if node is None or turn.state.workers_on(name) or link_verdicts.has_failed(node):
            continue
        if link_pairs.has_another_try(turn.state, node, turn.now):
            continue
        if evidence := link_verdicts.evidence(node, turn.state.nodes, turn.now):
            _convict(turn, node, evidence)


def _convict(turn: Turn, node: Node, evidence: list[LinkTrial]) -> None:
    """The links of a node are bad with others that are good: it fails, and nobody else does."""
    said = "; ".join(f"with {trial.partner}: {trial.bad}" for trial in evidence)
    why = f"{said}; these nodes are good with others"
    rows = tuple(
        each.result.model_copy(update={"verdict": Verdict.FAILED, "reason": why})
        for each in node.measured.results
        if each.result.check == RATE
    )
    rows = rows or (CheckResult(check=RATE, verdict=Verdict.FAILED, reason=why),)
    kept = check_verdicts.merged(node.measured.results, rows, turn.now)
    node = node_checks.note(turn, node, results=kept)
    for trial in node.measured.links:
        _clear(turn, trial.partner, node.id)
    node_checks.fail(turn, node, f"{LINK}: {why}")


def _clear(turn: Turn, name: str, culprit: str) -> None:
    """Hold the trials with a node that is to blame against nobody else."""
    node = turn.state.nodes.get(name)
    if node is None:
        return
    cleared = {
        "verdict": Verdict.SKIPPED,
        "figure": None,
        "reason": f"not counted: {culprit} is to blame",
    }
    results = tuple(
        each.result.model_copy(update=cleared)
        for each in node.measured.results
        if each.result.check in {RATE, LATENCY} and each.result.peer == culprit
    )
    links = tuple(each for each in node.measured.links if each.partner != culprit)
    kept = check_verdicts.merged(node.measured.results, results, turn.now)
    at = node.measured.link_at if links else None  # nothing is known of it: it is due again
    node_checks.note(turn, node, links=links, results=kept, link_at=at)
