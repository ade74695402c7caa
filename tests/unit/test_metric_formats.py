"""Steps and losses are read from files that trainers' libraries have written.

`data/metrics/` has real files: of `torch.utils.tensorboard` with tensorboard 2.21 (12 steps of 10,
with a histogram, an image, a text and a scalar as a tensor between), of tensorboardX 2.6.5 (12
steps), and of W&B 0.31, offline (26 steps of 10, with an evaluation now and then, over two blocks).
"""

from __future__ import annotations

import gzip
import json
import math
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest

from babysit.ring import Record
from jobs.spec_file import SpecError, loads
from jobs.watch.files import DECODERS, Decoder, Format, Names, Row, RowReader, format_of
from jobs.watch.files.tensorboard import LARGEST, EventDecoder, masked_checksum

DATA = Path(__file__).parents[1] / "data" / "metrics"
LATER = 1.9e9


def real(name: str) -> bytes:
    """A file that a library has written."""
    return gzip.decompress((DATA / name).read_bytes())


def read(
    decoder: Decoder, pieces: Sequence[bytes], names: Names | None = None, **options: bool
) -> list[Record]:
    """All reports of a file that grows by these pieces."""
    reader = RowReader(names or Names(), 0.0, **options)
    found = []
    for piece in pieces:
        if rows := decoder.feed(piece):
            found += reader.feed(rows, LATER)
    return [*found, *reader.feed([], LATER)]


@pytest.mark.parametrize("size", [7, 1000, 1 << 20])
@pytest.mark.parametrize(
    ("file", "kind", "count", "unit"),
    [
        ("torch-2.13.gz", Format.TENSORBOARD, 12, 10),
        ("tensorboardX-2.6.gz", Format.TENSORBOARD, 12, 1),
        ("wandb-0.31.gz", Format.WANDB, 26, 10),
    ],
)
def test_real_files(file: str, kind: Format, count: int, unit: int, size: int) -> None:
    """Steps and losses of the training, and not those of its validations, however bytes come."""
    data = real(file)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    found = read(DECODERS[kind](), pieces)
    assert [record.step for record in found] == [unit * i for i in range(1, count + 1)]
    losses = [record.loss or 0.0 for record in found]
    if unit == 10:
        assert math.isnan(losses.pop(6))
    assert losses == pytest.approx(
        [3 / (record.step / unit) for record in found if record.loss == record.loss]
    )
    assert all(record.time > 1.7e9 for record in found)
    assert sum(record.seconds for record in found) == pytest.approx(found[-1].time - found[0].time)


def test_other_numbers_come_along() -> None:
    """The norm of the gradient, and the learning rate."""
    assert {r.grad_norm for r in read(DECODERS[Format.WANDB](), [real("wandb-0.31.gz")])} == {1.5}
    rates = [r.learning_rate for r in read(EventDecoder(), [real("torch-2.13.gz")])]
    assert rates == pytest.approx([1e-3] * 12)


def test_a_scalar_that_is_a_tensor() -> None:
    """TensorFlow 2 writes scalars so."""
    [record] = read(EventDecoder(), [real("torch-2.13.gz")], Names(loss="new style"))
    assert (record.step, record.loss) == (60, 5.0)


def framed(event: bytes) -> bytes:
    """A record of an event file."""
    length = struct.pack("<Q", len(event))
    return length + struct.pack("<I", masked_checksum(length)) + event + bytes(4)


def test_a_large_record_is_passed_over() -> None:
    """Images and graphs are not kept in memory."""
    data = real("tensorboardX-2.6.gz")
    large = framed(bytes(LARGEST + 5)) + data
    for size in (100_000, len(large)):
        pieces = [large[at : at + size] for at in range(0, len(large), size)]
        assert len(read(EventDecoder(), pieces)) == 12


@pytest.mark.parametrize("kind", [Format.TENSORBOARD, Format.WANDB])
def test_damage_ends_the_reading(kind: Format) -> None:
    """Behind a record that is damaged, nothing is made up."""
    data = bytearray(real("wandb-0.31.gz" if kind is Format.WANDB else "torch-2.13.gz"))
    whole = len(read(DECODERS[kind](), [bytes(data)]))
    place = len(data) * 96 // 100
    data[place : place + 64] = bytes(64)
    decoder = DECODERS[kind]()
    found = read(decoder, [bytes(data)])
    assert 0 < len(found) < whole
    assert "damaged" in decoder.trouble
    assert decoder.feed(real("wandb-0.31.gz")) == []


@pytest.mark.parametrize("kind", list(DECODERS))
@pytest.mark.parametrize(
    "data", [b"\0" * 5000, b"\xff" * 5000, b"{" * 5000 + b"\n", b'{"a":\n[}\n']
)
def test_rubbish_is_nothing(kind: Format, data: bytes) -> None:
    """A file may hold anything."""
    assert read(DECODERS[kind](), [data, data]) == []


LINES: list[tuple[str, list[dict[str, object]], list[tuple[int, float]]]] = [
    (
        "plain",
        [{"step": 1, "loss": 2.5, "lr": 0.1}, {"step": 2, "loss": 2.4}],
        [(1, 2.5), (2, 2.4)],
    ),
    (
        "as text, as fairseq",
        [{"epoch": 1, "update": 0.05, "loss": "9.5", "num_updates": "100"}],
        [(100, 9.5)],
    ),
    (
        "mmengine",
        [{"lr": 0.1, "loss": 1.5, "loss_cls": 0.5, "iter": 50, "step": 50, "time": 0.3}],
        [(50, 1.5)],
    ),
    (
        "nested",
        [{"train": {"loss": 2.0, "grad_norm": 1.0}, "eval": {"loss": 8.0}, "global_step": 5}],
        [(5, 2.0)],
    ),
    (
        "validations between",
        [
            {"step": 5, "val_loss": 9.0},
            {"step": 5, "loss": 2.0},
            {"step": 5, "eval/loss": 9.0},
            {"step": 6, "loss": 1.9},
        ],
        [(5, 2.0), (6, 1.9)],
    ),
    (
        "steps that come again",
        [{"step": s, "loss": 1.0 * s} for s in (5, 6, 4, 5, 6, 7)],
        [(5, 5.0), (6, 6.0), (7, 7.0)],
    ),
    ("no loss", [{"step": 5, "lr": 1.0}, {"step": 6, "eval_loss": 1.0}], []),
    ("no step", [{"epoch": 1, "loss": 1.0}], []),
    ("half a step", [{"step": 1.5, "loss": 1.0}, {"step": 1e300, "loss": 1.0}], []),
    ("truth is no number", [{"step": True, "loss": 1.0}], []),
]


@pytest.mark.parametrize(("rows", "due"), [case[1:] for case in LINES], ids=[c[0] for c in LINES])
def test_lines_of_json(rows: list[dict[str, object]], due: list[tuple[int, float]]) -> None:
    """The usual names are found; what is not sure is not known."""
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    found = read(DECODERS[Format.JSON_LINES](), [data[:11], data[11:]])
    assert [(record.step, record.loss) for record in found] == due


def test_names_of_the_spec() -> None:
    """They win over the usual ones, and a step needs no loss then."""
    data = b'{"step": 1, "n": 4, "loss": 9, "mine.loss": 2.5, "tok": 64}\n{"n": 5}\n'
    names = Names(step="n", loss="mine/loss", tokens="tok")
    found = read(DECODERS[Format.JSON_LINES](), [data], names, from_zero=True)
    assert [(r.step, r.loss, r.tokens) for r in found] == [(5, 2.5, 64.0), (6, None, 0.0)]


def test_rows_without_times_share_the_time_since_the_last() -> None:
    """A file that is looked at now and then does not seem to make all of its steps at once."""
    reader = RowReader(Names(), 50.0)
    rows = [Row({"step": float(step), "loss": 1.0}) for step in range(1, 6)]
    reader.feed(rows[:1], 100.0)
    assert [r.seconds for r in reader.feed(rows[1:], 108.0)] == [2.0] * 4
    assert reader.seen.step == 5
    reader.feed([Row({"eval_loss": 1.0})], 120.0)
    assert (reader.seen.time, reader.seen.first_step) == (120.0, 1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("events.out.tfevents.1796.node.1.0", Format.TENSORBOARD),
        ("run-abcd.wandb", Format.WANDB),
        ("trainer_state.json", Format.TRAINER_STATE),
        ("log.txt", Format.JSON_LINES),
    ],
)
def test_formats_are_told_by_the_name(name: str, kind: Format) -> None:
    """Any other name is one of lines of JSON, where a spec gives it."""
    assert format_of(name) is kind
    assert format_of(name, sure=True) is (None if name == "log.txt" else kind)


def test_files_in_a_spec() -> None:
    """One source, with names only for files."""
    begin = "name: a\ncommand: [x]\nwatch: "
    read_spec = loads(begin + "{files: 'logs/*.jsonl', names: {loss: mine}}").watch
    assert not isinstance(read_spec, str)
    assert read_spec.places == ("logs/*.jsonl",)
    assert read_spec.preset_or_own is None
    for wrong in (
        "{files: 'a/**/b'}",
        "{files: 'a/{step}.jsonl'}",
        "{files: 'a/*'}",
        "{files: a.jsonl, preset: nanogpt}",
        "{files: a.jsonl, step: '(x)'}",
        "{names: {loss: x}}",
        "{preset: nanogpt, names: {loss: x}}",
    ):
        with pytest.raises(SpecError, match="watch"):
            loads(begin + wrong)
    for preset in Format:
        assert not isinstance(watch := loads(f"{begin}{{preset: {preset}}}").watch, str)
        assert watch.places
