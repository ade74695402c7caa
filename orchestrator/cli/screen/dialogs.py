"""Questions that the screen asks before it changes something, and its help."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static

from orchestrator.core.text import visible

HELP = """\
↑ ↓        choose a run, an incident or a line
tab        next part of the screen
1 2 3 4    overview, ranks, incidents, log
[ ]        log of the rank before, after
h          hold: no automatic action for the run; again: end it
a          acknowledge: the chosen incident, or the newest open one
b          roll back to an older checkpoint
r          read again now
?          this help
q          leave; runs go on

hold and roll back ask first, and take a reason for the logbook.
While the server is away, the screen says so; then it goes on.
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request that waits for a yes."""

    title: str
    effect: str
    """A sentence on what will happen."""
    button: str
    asks_step: bool = False
    """True: a step may be given."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A yes."""

    reason: str
    step: int | None = None


class Confirm(ModalScreen[Answer | None]):
    """Asks before a request is sent. Escape is a no; the reason goes into the audit."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "dismiss(None)", "Cancel")]

    def __init__(self, question: Question) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        """Lay out the widgets."""
        question = self._question
        with Vertical(id="dialog"):
            yield Static(Text(question.title, style="bold"))
            yield Static(Text(visible(question.effect)), id="effect")
            if question.asks_step:
                yield Input(placeholder="to step (empty: one checkpoint back)", id="step")
            yield Input(placeholder="reason, for the logbook", id="reason", max_length=1000)
            yield Static("", id="wrong")
            with Horizontal(id="buttons"):
                yield Button(question.button, variant="error", id="yes")
                yield Button("Cancel", id="no")

    def on_mount(self) -> None:
        """Start with the first field: Enter in it does not confirm by accident."""
        self.query(Input).first().focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Enter goes on to the next field, and from the last to the button."""
        event.stop()
        self.focus_next()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Take the answer, if its step is one."""
        event.stop()
        if event.button.id == "no":
            self.dismiss(None)
            return
        typed = self.query_one("#step", Input).value.strip() if self._question.asks_step else ""
        if typed and not typed.replace(",", "").isdecimal():
            wrong = f"{typed}: expected a step, such as 900"
            self.query_one("#wrong", Static).update(Text(wrong, style="bold red"))
            return
        step = int(typed.replace(",", "")) if typed else None
        self.dismiss(Answer(reason=self.query_one("#reason", Input).value.strip(), step=step))


class Help(ModalScreen[None]):
    """The keys."""

    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape", "dismiss(None)", "Close"),
        ("q", "dismiss(None)", "Close"),
        ("question_mark", "dismiss(None)", "Close"),
    ]

    def compose(self) -> ComposeResult:
        """Lay out the widgets."""
        with Vertical(id="dialog"):
            yield Static(Text(HELP))
            yield Button("Close", id="no")

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Close."""
        event.stop()
        self.dismiss(None)
