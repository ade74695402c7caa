"""No file of a checkpoint runs code at its load, whoever has written it."""

from __future__ import annotations

import json
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from babysit.checkpoint import shard
from babysit.errors import StateMismatchError
from babysit.reporter import Reporter
from babysit.run import Run
from babysit.wire import (
    MANIFEST_FILE,
    NOTES_FILE,
    Candidate,
    Plan,
    SavePolicy,
    Tier,
    rank_directory,
    step_directory,
)


def make_run(root: Path, step: int = 0) -> Run:
    path = str(step_directory(root, step))
    restore = (Candidate("c", step, Tier.MEMORY, path, 1, 1, "r"),) if step else ()
    policy = SavePolicy(memory_directory=str(root), memory_every_steps=1, memory_keep=9)
    return Run(Plan("r", 1, 0, 1, restore, save=policy), Reporter(root, 0))


def sparse_state() -> dict[str, Any]:
    model = nn.Linear(2, 2)
    model.register_buffer("graph", torch.eye(3).to_sparse())
    return {"model": model, "opt": torch.optim.AdamW(model.parameters()), "seen": [torch.ones(1)]}


def save(root: Path, state: dict[str, Any]) -> Path:
    """The files of a checkpoint of step 1."""
    run = make_run(root)
    run.restore(state)
    for _ in run.steps(range(1)):
        run.checkpoint(state)
    return rank_directory(step_directory(root, 1), 0)


def hide(directory: Path, name: str, content: bytes) -> None:
    """Replace a file, and everything that would show it."""
    (directory / name).write_bytes(content)
    manifest = json.loads((directory / MANIFEST_FILE).read_text())
    files = [file for file in manifest["files"] if (directory / file["name"]).exists()]
    for file in [*files, {"name": name}]:
        data = (directory / file["name"]).read_bytes()
        file.update(bytes=len(data), blake2b=shard._blake2b(data).hexdigest())
    manifest["files"] = files
    (directory / MANIFEST_FILE).write_text(json.dumps(manifest))


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


FILES = ["extras.pt", "objects.json", "position.json", "tensors.json"]


def test_the_files_are_numbers_json_and_what_weights_only_loads(tmp_path: Path) -> None:
    directory = save(tmp_path, sparse_state())
    names = sorted(path.name for path in directory.iterdir())
    assert names == sorted([*FILES, "tensors.bin", MANIFEST_FILE])
    assert torch.load(directory / "extras.pt", weights_only=True)[0].is_sparse
    for name in FILES[1:]:
        json.loads((directory / name).read_text())


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "dump", [partial(pickle.dump, protocol=2), torch.save], ids=["pickle", "zip"]
)
def test_a_pickle_in_its_place_is_refused_and_not_run(tmp_path: Path, name: str, dump: Any) -> None:
    directory, mark = save(tmp_path, sparse_state()), tmp_path / "ran"
    with (tmp_path / "bomb").open("wb") as file:
        dump([Bomb(mark)], file)
    hide(directory, name, (tmp_path / "bomb").read_bytes())
    with pytest.raises((StateMismatchError, ValueError)):
        make_run(tmp_path, 1).restore(sparse_state())
    assert not mark.exists()


@pytest.mark.parametrize("name", ["objects", "position"])
def test_a_checkpoint_of_the_time_of_pickles_is_refused_in_words(tmp_path: Path, name: str) -> None:
    directory, mark = save(tmp_path, sparse_state()), tmp_path / "ran"
    (directory / f"{name}.json").unlink()
    old = {"objects": "objects.pt", "position": "position.pickle"}[name]
    hide(directory, old, pickle.dumps(Bomb(mark)))
    with pytest.raises(StateMismatchError, match=r"before 0\.1\.0.* pickle.*another checkpoint"):
        make_run(tmp_path, 1).restore(sparse_state())
    assert not mark.exists()


class Fraction:
    """Made by code of its own, so it has to be registered."""

    def __init__(self, above: int) -> None:
        self.above = above

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def test_a_class_that_the_script_registers_is_restored_and_no_other(tmp_path: Path) -> None:
    state = {"model": nn.Linear(1, 1), "ratio": [Fraction(3)]}
    with pytest.raises(StateMismatchError, match=r"'ratio/%0' .* Fraction .*add_safe_globals"):
        make_run(tmp_path).restore(state)
    with torch.serialization.safe_globals([Fraction]):
        save(tmp_path, state)
        found = {"model": nn.Linear(1, 1), "ratio": [Fraction(0)]}
        make_run(tmp_path, 1).restore(found)
        assert found["ratio"][0].above == 3
    with pytest.raises(StateMismatchError, match="Fraction"):
        make_run(tmp_path, 1).restore({"model": nn.Linear(1, 1), "ratio": []})


class Loader:
    """Keeps its own place, with a value that no file can hold."""

    def __init__(self, *, odd: bool) -> None:
        self.odd = odd

    def __iter__(self) -> Any:
        return iter(range(4))

    def state_dict(self) -> dict[str, Any]:
        return {"next": [print] if self.odd else 1}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


def test_a_loaders_state_is_refused_at_the_first_save_and_noted_later(tmp_path: Path) -> None:
    state = {"model": nn.Linear(1, 1)}
    run, loader = make_run(tmp_path), Loader(odd=True)
    run.restore(state)
    next(run.steps(loader))
    with pytest.raises(StateMismatchError, match="loader_state/next/0 is a builtin_function"):
        run.checkpoint(state)
    run, loader = make_run(tmp_path), Loader(odd=False)
    run.restore(state)
    for step, _ in run.steps(loader):
        run.checkpoint(state)
        loader.odd = step == 2
    notes = map(json.loads, (tmp_path / NOTES_FILE).read_text().splitlines())
    failed = [note for note in notes if note["kind"] == "save_failed"]
    assert [note["step"] for note in failed] == [3]
    assert "loader_state/next/0" in failed[0]["error"]
