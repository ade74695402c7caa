"""Another number of ranks loads what DeepSpeed saved: what is converted, and what is left."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from babysit import collective
from babysit.errors import StateMismatchError
from babysit.integrations.deepspeed import EngineState


class Engine:
    """An engine of one of three ranks, which notes what it was given to load."""

    world_size = 3

    def __init__(self, *, stages: int = 1, zero: bool = True) -> None:
        self.mp_world_size, self.global_rank, self._zero = stages, 0, zero
        self._config = SimpleNamespace(load_universal_checkpoint=False)
        self.found: set[str] = set()
        self.universal = False

    def zero_optimization(self) -> bool:
        return self._zero

    def load_checkpoint(self, directory: str, tag: str) -> tuple[str, dict[str, Any]]:
        self.universal = self._config.load_universal_checkpoint
        self.found = {file.name for file in (Path(directory) / tag).iterdir()}
        return directory, {"babysit_beside": {}}


@pytest.fixture
def step(tmp_path: Path) -> Path:
    """A checkpoint of two ranks."""
    for rank in range(2):
        place = tmp_path / f"rank-{rank:05d}"
        (place / "state").mkdir(parents=True)
        (place / "ranks.json").write_text("2")
        (place / "state" / "mp_rank_00_model_states.pt").write_text("model")
        (place / "state" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").write_text("part")
    return tmp_path


@pytest.fixture
def converter(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """DeepSpeed's converter: copies the names of what it was given."""

    def main(given: Any) -> None:
        Path(given.output_folder).mkdir(parents=True)
        for file in Path(given.input_folder).iterdir():
            (Path(given.output_folder) / f"universal-{file.name}").write_text(file.read_text())

    found = ModuleType("deepspeed.checkpoint.ds_to_universal")
    found.main = main  # type: ignore[attr-defined]
    package = ModuleType("deepspeed.checkpoint")
    package.ds_to_universal = found  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deepspeed", ModuleType("deepspeed"))
    monkeypatch.setitem(sys.modules, "deepspeed.checkpoint", package)
    return found


@pytest.mark.usefixtures("converter")
def test_the_shards_of_all_ranks_are_converted_and_loaded(step: Path) -> None:
    before = sorted(step.rglob("*"))
    engine = Engine()
    EngineState(engine).load(step / "rank-00001")
    assert engine.found == {
        "universal-mp_rank_00_model_states.pt",
        "universal-zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "universal-zero_pp_rank_1_mp_rank_00_optim_states.pt",
    }
    assert engine.universal
    assert not engine._config.load_universal_checkpoint, "its own checkpoints are of its own format"
    assert sorted(step.rglob("*")) == before, "what was converted is removed"


@pytest.mark.usefixtures("converter")
def test_a_rank_whose_load_fails_does_not_wait_for_the_others(
    step: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are in a collective of their load: another one of this rank would be taken for it."""
    met: list[tuple[int, ...]] = []

    def minimum(*values: int) -> tuple[int, ...]:
        met.append(values)
        return values

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("another optimizer")

    engine = Engine()
    monkeypatch.setattr(collective, "minimum", minimum)
    monkeypatch.setattr(engine, "load_checkpoint", fails)
    with pytest.raises(RuntimeError, match="another optimizer"):
        EngineState(engine).load(step / "rank-00000")
    assert met == [(1,)], "after the conversion"
    assert not engine._config.load_universal_checkpoint


def test_a_conversion_that_fails_says_why_and_what_to_do(
    step: Path, converter: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(given: Any) -> None:
        Path(given.output_folder).mkdir(parents=True)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(converter, "main", fails)
    before = sorted(step.rglob("*"))
    with pytest.raises(StateMismatchError) as refused:
        EngineState(Engine()).load(step / "rank-00000")
    assert (
        "2 ranks saved it with DeepSpeed, and this attempt has 3. It could not be converted: "
        in (said := str(refused.value))
    )
    assert "No space left on device. Give the run 2 ranks again; or collect" in said
    assert sorted(step.rglob("*")) == before


@pytest.mark.usefixtures("converter")
def test_a_pipeline_keeps_its_ranks(step: Path) -> None:
    with pytest.raises(StateMismatchError, match=r"this attempt has 3\. Give the run 2 ranks"):
        EngineState(Engine(stages=2)).load(step / "rank-00000")


def test_without_zero_each_rank_has_the_whole_state(step: Path) -> None:
    engine = Engine(zero=False)
    EngineState(engine).load(step / "rank-00000")
    assert not engine.universal
    assert "mp_rank_00_model_states.pt" in engine.found
