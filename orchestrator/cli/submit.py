"""The commands that submit a run: of a spec, or of a command line."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from orchestrator.cli import follow, show_run
from orchestrator.cli.command_spec import CommandOptions
from orchestrator.cli.errors import CliError, ExitCode, UnreachableError
from orchestrator.cli.output import Format, FormatOption, emit, put, say
from orchestrator.cli.paths import path
from orchestrator.cli.runs import columns
from orchestrator.cli.session import Session, session
from orchestrator.cli.trailing import trailing

_COMMAND_LINE = "the command line"
NoEnvOption = Annotated[
    bool,
    typer.Option(
        "--no-env", help="Pass nothing of this shell but what env_from of the spec names."
    ),
]
OwnerOption = Annotated[
    str, typer.Option(help="Owner of the run; only administrators may name another.")
]
SpecArgument = Annotated[
    Path | None,
    typer.Argument(metavar="SPEC", help="A run spec in YAML; `babysit init` writes one."),
]
_PANEL = "Without a spec"
NameOption = Annotated[
    str | None,
    typer.Option(help="Name of the run. Default: that of the script.", rich_help_panel=_PANEL),
]
NodesOption = Annotated[
    str | None,
    typer.Option(
        metavar="N|MIN:MAX",
        help="Nodes. Default: what the launcher says, or 1.",
        rich_help_panel=_PANEL,
    ),
]
ProcessesOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Processes per node, for a command without launcher.", rich_help_panel=_PANEL
    ),
]
GpusOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="GPUs per node. Default: one for each process, where nodes have GPUs.",
        rich_help_panel=_PANEL,
    ),
]
CheckpointsOption = Annotated[
    str | None,
    typer.Option(metavar="DIRECTORY", help="Directory for checkpoints.", rich_help_panel=_PANEL),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help="A field of a spec, such as resources.memory_per_node=8Gi. May be repeated.",
        rich_help_panel=_PANEL,
    ),
]
PrintOption = Annotated[
    bool,
    typer.Option(
        "--print-spec",
        help="Print the spec of the command, and do nothing.",
        rich_help_panel=_PANEL,
    ),
]


class Given(NamedTuple):
    """A spec, and where it comes from."""

    text: str
    name: str
    """Problems are reported under it."""
    base: Path
    """The directory that relative paths are relative to."""


def from_file(spec: Path) -> Given:
    """The spec of a file.

    Raises:
        CliError: It cannot be read.
    """
    from jobs.spec_file import SpecError, read_text

    try:
        return Given(read_text(spec), str(spec), spec.absolute().parent)
    except SpecError as error:
        raise CliError(str(error), ExitCode.USAGE) from error


def _given(ctx: typer.Context, spec: Path | None, options: CommandOptions, *, shown: bool) -> Given:
    """The spec of a file, or of the command after `--`.

    Raises:
        typer.Exit: It was printed, as asked for.
    """
    from orchestrator.cli.command_spec import write

    command = trailing(ctx)
    if (spec is None) == (command is None):
        what = "both" if command is not None else "none"
        message = f"expected a spec, or a command after --, and got {what}"
        raise CliError(message, ExitCode.USAGE)
    if command is None and spec is not None:
        if options.given or shown:
            first = [*options.given, "--print-spec"][0]
            raise CliError(
                f"{first} is for a command after --, and {spec} is a spec", ExitCode.USAGE
            )
        return from_file(spec)
    written = write(session(ctx), command or (), options)
    if shown:
        put(written.text.rstrip())
    for remark in written.remarks:
        say(remark)
    if shown:
        raise typer.Exit
    return Given(written.text, _COMMAND_LINE, Path.cwd())


def send(
    here: Session, given: Given, *, dry_run: bool = False, with_shell: bool = True, owner: str = ""
) -> dict[str, Any]:
    """Check a spec and submit it; mistakes are found before any server is contacted.

    Args:
        here: The session.
        given: The spec.
        dry_run: Only ask what would happen; nothing is submitted.
        with_shell: Let the environment of this shell go with the run, where it has a meaning.
        owner: Whom an administrator names as the owner; empty: the caller, or the spec's.

    Raises:
        CliError: The spec is wrong, or the control plane refused it.
    """
    from jobs.environment import Environment, read_sources
    from jobs.spec_file import SpecError, parse, resolve
    from orchestrator.cli import submission

    try:
        checked, source = parse(given.text, given.name)
        named = read_sources(checked.env_from, given.base, os.environ, source)
        place = submission.place_of(here)
        shell = submission.shell(place) if with_shell else None
        environment = Environment(shell=shell, named=named)
        code = submission.code_of(place, checked, given.base)
        rules = submission.rules_of(place, checked, given.base)
        if here.settings.server is None and place.bundle_bytes is None:
            resolve(checked, given.base, source, environment)
    except SpecError as error:
        raise CliError(_without_place(str(error)), ExitCode.USAGE) from error
    where = path("runs", "dry-run") if dry_run else path("runs")
    bundle = None if dry_run or code is None else code.send(here.api)
    try:
        answer: dict[str, Any] = here.api.post(
            where,
            yaml=given.text,
            name=given.name,
            base_directory=str(given.base),
            owner=owner,
            environment=environment.model_dump(),
            **({} if place.bundle_bytes is None else {"bundle": bundle, "log_rules": rules}),
        )
    except UnreachableError:
        raise
    except CliError as error:
        raise CliError(_without_place(error.message), error.code) from error
    if dry_run and code is not None:
        answer["sentences"].append(str(code))
    if with_shell and not dry_run:
        submission.say_dropped(shell, checked, named)
    for warning in answer.get("warnings", ()):  # an older server has none
        placed = warning if warning.startswith(given.name) else f"{given.name}: {warning}"
        say(_without_place(placed))
    return answer


def _without_place(text: str) -> str:
    """Problems without their places in a spec that the user has never seen."""
    return re.sub(rf"^{_COMMAND_LINE}:(\d+:\d+:)? *", "", text, flags=re.MULTILINE)


def submit(  # noqa: PLR0913, PLR0917 (a command has its options)
    ctx: typer.Context,
    spec: SpecArgument = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print where the run would start; submit nothing.")
    ] = False,
    no_env: NoEnvOption = False,
    owner: OwnerOption = "",
    name: NameOption = None,
    nodes: NodesOption = None,
    processes: ProcessesOption = None,
    gpus: GpusOption = None,
    checkpoints: CheckpointsOption = None,
    fields: SetOption = None,
    print_spec: PrintOption = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Submit a run and return at once.

    The environment of this shell goes with the run, if the run's processes are yours on this
    machine; elsewhere only the variables that env_from of the spec names.

    For example:

        babysit submit run.yaml
        babysit submit run.yaml --dry-run
        RUN=$(babysit submit run.yaml -o name)
        babysit submit --name big --nodes 2 -- torchrun --nproc_per_node 8 t.py
    """
    here = session(ctx)
    options = CommandOptions(name, nodes, processes, gpus, checkpoints, tuple(fields or ()))
    given = _given(ctx, spec, options, shown=print_spec)
    if dry_run:
        _show_dry_run(send(here, given, dry_run=True, with_shell=not no_env, owner=owner), form)
        return
    run = send(here, given, with_shell=not no_env, owner=owner)
    emit(run, columns(here), form)
    if form is Format.TABLE:
        say(f"Follow it with: babysit watch {run['name']}")


def _show_dry_run(answer: dict[str, Any], form: Format) -> None:
    if form in {Format.TABLE, Format.WIDE}:
        put("\n".join(answer["sentences"]))
    else:
        emit(answer, [], form, name="name")


def run(  # noqa: PLR0913, PLR0917 (a command has its options)
    ctx: typer.Context,
    spec: SpecArgument = None,
    no_env: NoEnvOption = False,
    owner: OwnerOption = "",
    name: NameOption = None,
    nodes: NodesOption = None,
    processes: ProcessesOption = None,
    gpus: GpusOption = None,
    checkpoints: CheckpointsOption = None,
    fields: SetOption = None,
    print_spec: PrintOption = False,
    form: FormatOption = Format.TABLE,
) -> None:
    """Submit a run and follow it to its end; Ctrl-C detaches, and the run goes on.

    Without a spec, a command after -- is enough. torchrun, accelerate launch, deepspeed and
    python -m torch.distributed.run are understood and replaced: babysit starts their processes
    itself. Options that it cannot take over are refused by name.

    Exit code: 0 if the run succeeded, 1 if it failed, 7 if it was cancelled.

    For example:

        babysit run run.yaml
        babysit run run.yaml -o json > outcome.json
        babysit run -- torchrun --nproc_per_node 2 train.py --lr 3e-4
        babysit run --checkpoints ck -- accelerate launch train.py
        babysit run --print-spec -- deepspeed --num_gpus 2 train.py > run.yaml
    """
    here = session(ctx)
    options = CommandOptions(name, nodes, processes, gpus, checkpoints, tuple(fields or ()))
    given = _given(ctx, spec, options, shown=print_spec)
    submitted = send(here, given, with_shell=not no_env, owner=owner)
    last = follow.to_the_end(here, submitted)
    if form is Format.TABLE:
        put(show_run.page(last, here.clock.now()))
    else:
        emit(last, columns(here), form)
    raise typer.Exit(follow.OUTCOMES[last["state"]])
