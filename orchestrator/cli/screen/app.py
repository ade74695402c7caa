"""The screen of `babysit watch`: all runs, and one of them in full.

The problem: at 3 a.m. one terminal must show what goes on, and let a person step in without typing
commands. The design: a thread polls the server (`orchestrator.cli.screen.feed`), and what it read
is put into widgets if it differs from before; so an idle screen costs next to nothing. Requests are
sent from threads too. Limits: the newest 200 runs; changes are seen within a poll.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.notifications import SeverityLevel
from textual.widgets import DataTable, Footer, Static, TabbedContent, TabPane

from orchestrator.cli.errors import CliError
from orchestrator.cli.output import step_words
from orchestrator.cli.screen import panes
from orchestrator.cli.screen.dialogs import Answer, Confirm, Help, Question
from orchestrator.cli.screen.feed import Data, Feed, Snapshot
from orchestrator.core.text import visible

POLL_SECONDS = 2.0
"""Seconds between two polls. Each costs about 5 ms of CPU: 0.3 % of a core."""
_OVER = frozenset({"succeeded", "failed", "cancelled"})
_TABS = ("overview", "ranks", "incidents", "log")
_CSS = """
#away { background: $error; color: $text; display: none; height: 1; text-style: bold; }
#away.on { display: block; }
#runs { height: auto; min-height: 3; max-height: 35%; }
TabbedContent { height: 1fr; margin-top: 1; }
TabPane { padding: 0 1; }
#curve { width: 3fr; height: 100%; }
#facts { width: 2fr; height: 100%; padding-left: 2; }
ModalScreen { align: center middle; }
#dialog { width: 76; max-width: 95%; height: auto; max-height: 95%; padding: 1 2;
  background: $surface; border: round $primary; }
#effect { margin: 1 0; }
#buttons { height: auto; margin-top: 1; }
Button { margin-right: 2; }
#wrong { height: auto; }
"""


class Watch(App[str | None]):
    """The screen. Its result is the state of the selected run when the person left.

    Args:
        feed: The control plane.
        run: Id or name of the run that is selected at first; None: the newest.
    """

    TITLE = "babysit"
    CSS = _CSS
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        ("h", "hold", "Hold"),
        ("a", "acknowledge", "Acknowledge"),
        ("b", "roll_back", "Roll back"),
        ("1", "tab('overview')", "Overview"),
        ("2", "tab('ranks')", "Ranks"),
        ("3", "tab('incidents')", "Incidents"),
        ("4", "tab('log')", "Log"),
        ("question_mark", "help", "Help"),
        ("q", "leave", "Quit"),
        ("r", "refresh_now", ""),
        ("left_square_bracket", "rank(-1)", ""),
        ("right_square_bracket", "rank(1)", ""),
    ]

    def __init__(self, feed: Feed, run: str | None = None) -> None:
        super().__init__()
        self._feed, self._selected = feed, run
        self._rank = 0
        self._shown = Snapshot(run={}, curve={}, log_of="-")  # unlike any answer: all is drawn
        self._polling = False

    def compose(self) -> ComposeResult:
        """Lay out the widgets."""
        yield Static("", id="away")
        yield DataTable(id="runs", cursor_type="row", zebra_stripes=True)
        with TabbedContent(initial="overview"):
            with TabPane("Overview", id="overview"), Horizontal():
                yield Static("reading …", id="curve")
                with VerticalScroll(id="facts"):
                    yield Static("", id="about")
            with TabPane("Ranks", id="ranks"):
                yield DataTable(id="rank-table", cursor_type="row")
            with TabPane("Incidents", id="incidents"):
                yield DataTable(id="incident-table", cursor_type="row")
            with TabPane("Log", id="log"), VerticalScroll(id="log-scroll"):
                yield Static("", id="log-text")
        yield Footer()

    def on_mount(self) -> None:
        """Set up the tables, and begin to poll."""
        for name, titles in (
            ("runs", panes.RUNS),
            ("rank-table", panes.RANKS),
            ("incident-table", panes.INCIDENTS),
        ):
            table = self._table(name)
            for title in titles:
                table.add_column(title, key=title)
        self._table("runs").focus()
        self.set_interval(POLL_SECONDS, self._poll)
        self._poll()

    def _table(self, name: str) -> DataTable[Text]:
        return self.query_one(f"#{name}", DataTable)

    # reading

    def _poll(self) -> None:
        """Read in a thread, unless a poll is still under way: the server may be slow."""
        if not self._polling:
            self._polling = True
            self.run_worker(self._read, thread=True, group="poll", exit_on_error=False)

    def _read(self) -> None:
        try:
            with_log = self.query_one(TabbedContent).active == "log"
            asked = self._selected
            found = self._feed.poll(asked, rank=self._rank, with_log=with_log)
        finally:
            self._polling = False
        self.call_from_thread(self._show, found, asked)

    def _show(self, new: Snapshot, asked: str | None) -> None:
        """Put what has changed into the widgets; `asked` was selected when it was read."""
        old, self._shown = self._shown, new
        if new.run and asked == self._selected and not new.trouble and new.away_since is None:
            self._selected = new.run["id"]  # a name, or the end of an id, until now
        self._show_banner(old, new)
        if new.runs != old.runs:
            self._fill("runs", [(run["id"], panes.run_row(run)) for run in new.runs])
        if new.curve is not old.curve:
            self._draw()
        if new.run != old.run:
            self.query_one("#about", Static).update(panes.facts(new.run))
        if new.ranks != old.ranks:
            rows = panes.rank_rows(new.ranks)
            self._fill("rank-table", [(str(n), row) for n, row in enumerate(rows)])
        incidents = (new.run or {}).get("incidents", [])
        if incidents != (old.run or {}).get("incidents"):
            rows_ = [(each["id"], panes.incident_row(each)) for each in incidents]
            self._fill("incident-table", rows_)
        if (new.log, new.log_of) != (old.log, old.log_of):
            self._show_log(new)

    def _show_banner(self, old: Snapshot, new: Snapshot) -> None:
        """Say that the server is away, or what it refuses."""
        banner = self.query_one("#away", Static)
        if new.away_since is not None:
            banner.update(Text(panes.away(self._feed.now - new.away_since)))
        elif new.trouble:
            banner.update(Text(f" {visible(new.trouble)} "))
        banner.set_class(new.away_since is not None or bool(new.trouble), "on")
        if old.away_since is not None and new.away_since is None:
            self.notify("The server answers again.")

    def _draw(self) -> None:
        widget = self.query_one("#curve", Static)
        width, height = widget.size.width or 60, widget.size.height or 12
        widget.update(panes.curve(self._shown.run, self._shown.curve, width, height))

    def on_resize(self) -> None:
        """Draw the curve again in its new size."""
        self.call_after_refresh(self._draw)

    def _show_log(self, new: Snapshot) -> None:
        title = f"{new.log_of}, its end; [ and ] change the rank\n" if new.log_of else "no log yet"
        text = Text(title, style="dim")
        text.append(visible(new.log.replace("\r\n", "\n").replace("\r", "\n")), style="not dim")
        self.query_one("#log-text", Static).update(text)
        self.query_one("#log-scroll", VerticalScroll).scroll_end(animate=False)

    def _fill(self, name: str, rows: Sequence[tuple[str, list[Text]]]) -> None:
        """Update a table in place: its cursor stays on its row."""
        table = self._table(name)
        if [key for key, _ in rows] == [str(key.value) for key in table.rows]:
            for key, cells in rows:
                for column, cell in zip(table.columns, cells, strict=True):
                    if table.get_cell(key, column) != cell:
                        table.update_cell(key, column, cell, update_width=True)
            return
        chosen = self._selected if name == "runs" else self._row(name)
        with self.prevent(DataTable.RowHighlighted):
            table.clear()
            for key, cells in rows:
                table.add_row(*cells, key=key)
            names = [key for key, _ in rows]
            if chosen in names:
                table.move_cursor(row=names.index(chosen))

    def _row(self, name: str) -> str | None:
        """The key of the row that has the cursor."""
        table = self._table(name)
        if not table.is_valid_coordinate(table.cursor_coordinate):
            return None
        return table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value

    # choosing

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Another run is selected."""
        key = event.row_key.value if event.row_key else None
        if event.data_table.id == "runs" and key and key != self._selected:
            self._selected, self._rank = key, 0
            self._poll()

    def action_tab(self, name: str) -> None:
        """Show one part of the run."""
        self.query_one(TabbedContent).active = name
        if name == "log":
            self._poll()

    def action_rank(self, by: int) -> None:
        """Show the log of the next rank."""
        self._rank = max(0, self._rank + by)
        self._poll()

    def action_refresh_now(self) -> None:
        """Read now."""
        self._poll()

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(Help())

    def action_leave(self) -> None:
        """End the screen."""
        self.exit(self._shown.run["state"] if self._shown.run else None)

    # stepping in

    def _current(self) -> Data | None:
        """The run that is shown, if it is the selected one and may still be changed."""
        run = self._shown.run
        if not run or self._shown.away_since is not None:
            self.notify("There is no answer from the server: nothing was sent.", severity="warning")
            return None
        if not self._is_selected(run):
            return None
        if run["state"] in _OVER:
            self.notify(f"{run['name']} is over.", severity="warning", markup=False)
            return None
        return run

    def _is_selected(self, run: Data) -> bool:
        """False, with a notice, while another run is still shown: a key must not act on that."""
        if run["id"] != self._selected:
            self.notify("Another run is selected: nothing was sent.", severity="warning")
        return bool(run["id"] == self._selected)

    def action_hold(self) -> None:
        """Hold the run, or end its hold, after a question."""
        if (run := self._current()) is None:
            return
        name, held = run["name"], run["state"] == "held"
        question = Question(
            title=f"{'Release' if held else 'Hold'} {name}?",
            effect="babysit acts for the run again: it restarts and rolls back by itself."
            if held
            else "All automatic action for the run stops until someone releases it. Its ranks "
            "train on, and are watched; a failure is not restarted.",
            button="Release" if held else "Hold",
        )
        verb = "release" if held else "hold"

        def answered(answer: Answer | None) -> None:
            if answer is not None:
                said = f"{name} is {'released' if held else 'held'}."
                self._send(said, "runs", run["id"], verb, body={"reason": answer.reason})

        self.push_screen(Confirm(question), answered)

    def action_acknowledge(self) -> None:
        """Acknowledge the chosen incident, or the newest open one."""
        run = self._shown.run
        if run and not self._is_selected(run):
            return
        chosen = self._row("incident-table") if self._on("incidents") else None
        open_ = [each for each in (run or {}).get("incidents", ()) if each["state"] != "resolved"]
        of = next((each for each in open_ if each["id"] == chosen), None) if chosen else None
        of = of or next(iter(open_ if chosen is None else ()), None)
        if of is None:
            self.notify("There is no open incident to acknowledge.", severity="warning")
            return
        self._send(f"{of['kind']} is acknowledged.", "incidents", of["id"], "acknowledge")

    def _on(self, tab: str) -> bool:
        return self.query_one(TabbedContent).active == tab

    def action_roll_back(self) -> None:
        """Roll back to a checkpoint, after a question."""
        if (run := self._current()) is not None:
            self.run_worker(lambda: self._look_back(run), thread=True, exit_on_error=False)

    def _look_back(self, run: Data) -> None:
        try:
            steps = sorted({each["step"] for each in self._feed.checkpoints(run["id"])})
        except CliError as error:
            self._tell(error.message, "error")
            return
        self.call_from_thread(self.call_later, self._ask_back, run, steps)

    def _ask_back(self, run: Data, steps: list[int]) -> None:
        stored = ", ".join(f"{step:,}" for step in steps[-8:]) or "none"
        to = "an older checkpoint" if steps else "step 0"
        question = Question(
            title=f"Roll {run['name']} back?",
            effect=f"Its ranks are stopped at {step_words(run)} and start again from {to}; the "
            f"steps after it are computed again. Checkpoints of steps: {stored}.",
            button="Roll back",
            asks_step=True,
        )

        def answered(answer: Answer | None) -> None:
            if answer is not None:
                body = {"reason": answer.reason, "to_step": answer.step}
                said = f"{run['name']} rolls back."
                self._send(said, "runs", run["id"], "rollback", body=body)

        self.push_screen(Confirm(question), answered)

    def _send(self, said: str, *where: str, body: dict[str, Any] | None = None) -> None:
        """Send a request in a thread, and say how it ended."""

        def send() -> None:
            try:
                self._feed.ask(*where, body=body)
            except CliError as error:
                self._tell(error.message, "error")
                return
            self._tell(said, "information")
            self.call_from_thread(self._poll)

        self.run_worker(send, thread=True, exit_on_error=False)

    def _tell(self, message: str, severity: SeverityLevel) -> None:
        """Show a message, from a thread."""
        say = partial(self.notify, visible(message), severity=severity, markup=False)
        self.call_from_thread(say)
