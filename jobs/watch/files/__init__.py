"""Reads steps and losses from files that a script writes for others. Pure.

TensorBoard's event files, W&B's run files, lines of JSON, and `trainer_state.json` of transformers.
Each format has a decoder that takes the bytes as they are appended, cut anywhere, and gives rows of
named numbers; :class:`RowReader` finds the step and the loss among the names.
"""

from jobs.watch.files.formats import DECODERS, PLACES, Decoder, Format, format_of
from jobs.watch.files.names import Names
from jobs.watch.files.row_reader import RowReader
from jobs.watch.files.rows import Row
from jobs.watch.files.trainer_state import rows_of_state

__all__ = [
    "DECODERS",
    "PLACES",
    "Decoder",
    "Format",
    "Names",
    "Row",
    "RowReader",
    "format_of",
    "rows_of_state",
]
