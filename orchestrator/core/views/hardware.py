"""The view of a node's hardware, and the base of all views."""

from __future__ import annotations

import datetime as dt

from pydantic import BaseModel, ConfigDict, Field


class View(BaseModel):
    """A thing as shown. Not-a-number becomes null: JSON has no word for it."""

    model_config = ConfigDict(
        frozen=True, ser_json_inf_nan="null", serialize_by_alias=True, populate_by_name=True
    )


class ReadingView(View):
    """The newest value of one quantity that a hardware source has read."""

    source: str
    device: str
    name: str
    value: float
    at: dt.datetime


class HardwareView(View):
    """The hardware of a node, as its sources see it."""

    reported_at: dt.datetime | None = Field(description="null: no report has come.")
    boot: str = Field(default="", description="Id of this start of the machine.")
    blind: dict[str, str] = Field(
        description="Source: why it sees nothing, and what to do; `monitor` is the node monitor."
    )
    findings: list[str] = Field(default=[], description="The newest, oldest first.")
    readings: list[ReadingView] = Field(default=[], description="In the view of one node only.")
