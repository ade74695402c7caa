"""Reads and checks submissions."""

from __future__ import annotations

from typing import Any, Protocol

from pydantic import BaseModel, Field

from jobs.elsewhere import resolve_elsewhere
from jobs.environment import Environment
from jobs.spec import RunSpec
from jobs.spec_file import Source, SpecError, parse, resolve, validate
from monitors.exit_rules import RuleFile
from orchestrator.errors import InvalidError
from orchestrator.server.spec_notes import CheckedSpec


class Submission(BaseModel):
    """A run to submit: either `spec` (JSON) or `yaml` (text)."""

    spec: dict[str, Any] | None = None
    yaml: str | None = Field(default=None, max_length=1_000_000)
    name: str = Field(default="run.yaml", description="The name of the file, for problems.")
    base_directory: str = Field(
        max_length=4096,
        description="Absolute: the directory of the spec file, for a relative workdir.",
    )
    owner: str = Field(default="", max_length=100, description="For administrators.")
    environment: Environment | None = Field(
        default=None,
        description="Values of variables for the run, kept apart from it: `named` are those of "
        "`env_from`, `shell` is the environment of the submitter's shell, which counts only where "
        "`environment_of` of /info is the submitter's machine and user.",
    )
    bundle: str | None = Field(
        default=None,
        pattern="^[0-9a-f]{64}$",
        description="Id of the uploaded code, where `bundle_bytes` of /info is not null.",
    )
    log_rules: list[RuleFile] = Field(
        default=[],
        max_length=100,
        description="The content of the files in `monitors.logs`, in their order, where the code "
        "is uploaded.",
    )


class Place(Protocol):
    """Where runs are, as the controller knows it."""

    runs_here: bool
    takes_bundles: bool


def read_submission(body: Submission, place: Place) -> CheckedSpec:
    """Check what was submitted. Looks at files, unless the run's are on other machines.

    Raises:
        InvalidError, SpecError: It is wrong.
        OSError: A file that the spec names cannot be looked at.
    """
    if (body.spec is None) == (body.yaml is None):
        raise InvalidError("expected either `spec` or `yaml`")
    if not body.base_directory.startswith("/"):
        raise InvalidError(f"base_directory: expected an absolute path, got {body.base_directory}")
    if body.yaml is not None:
        spec, source = parse(body.yaml, body.name)
    else:
        source = Source(body.name)
        spec = validate(body.spec or {}, source)
    environment = _environment(body.environment, spec, source, runs_here=place.runs_here)
    if place.takes_bundles:
        spec = resolve_elsewhere(spec, source, environment, body.log_rules)
    else:
        spec = resolve(spec, body.base_directory, source, environment)
    return CheckedSpec(spec, source, environment, place.takes_bundles and spec.upload)


def _environment(
    given: Environment | None, spec: RunSpec, source: Source, *, runs_here: bool
) -> Environment:
    """The variables that go with a run.

    Raises:
        SpecError: The environment is too large, or `env_from` has no values: a server reads no
            files for those who may only submit.
    """
    if given is None and spec.env_from:
        message = "its values are read by `babysit submit`, or sent as `environment.named`"
        raise SpecError([source.problem(("env_from",), message)])
    environment = given or Environment()
    try:
        environment.checked()
    except ValueError as error:
        raise SpecError([source.problem((), str(error))]) from error
    return environment if runs_here else environment.model_copy(update={"shell": None})
