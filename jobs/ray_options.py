"""Options of a run for the actors of its workers on a Ray cluster."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, JsonValue


class Ray(BaseModel):
    """Wishes of a run for Ray; without effect on other clusters."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    runtime_env: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Ray's runtime environment of the workers, passed on as it is: `pip`, `uv`, "
        "`env_vars`, `py_modules` … With a `working_dir`, which brings the code, goes "
        "`upload: false`.",
    )

    @property
    def brings_code(self) -> bool:
        """True if Ray puts the code of the run on the nodes."""
        return bool(self.runtime_env.get("working_dir"))
