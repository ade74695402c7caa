"""What a stage of DeepSpeed's pipeline needs to load its own part of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from babysit.integrations.deepspeed import EngineState

NAMES = [f"mp_rank_{stage:02d}_model_states.pt" for stage in range(3)]


class Engine:
    """An engine of one stage, whose module writes its layers as DeepSpeed's does."""

    def __init__(self, *, stage: int, replica: int = 0, fails: bool = False) -> None:
        self.mp_world_size, self.world_size, self.checkpoint_engine = 3, 6, object()
        self.stage, self.fails = stage, fails
        self.module = SimpleNamespace(
            _grid=SimpleNamespace(data_parallel_id=replica), save_state_dict=self._layers
        )
        self.found: dict[str, str] = {}

    def _layers(self, directory: str, _engine: object) -> None:
        if self.module._grid.data_parallel_id == 0:
            if self.fails:
                raise OSError("no room")
            (Path(directory) / f"layer_{self.stage:02d}-model_states.pt").write_text("layer")

    def save_checkpoint(self, directory: str, **options: Any) -> None:
        place = Path(directory) / options["tag"]
        place.mkdir(parents=True)
        (place / NAMES[self.stage]).write_text(f"stage {self.stage}")
        self._layers(str(place), None)

    def load_checkpoint(self, directory: str, tag: str) -> tuple[str, dict[str, Any]]:
        self.found = {file.name: file.read_text() for file in (Path(directory) / tag).iterdir()}
        return directory, {"babysit_beside": {}}


@pytest.mark.parametrize("replica", [0, 1])
@pytest.mark.parametrize("stage", [0, 2])
def test_a_stage_loads_its_own_part(tmp_path: Path, stage: int, replica: int) -> None:
    """DeepSpeed counts the stages' files and reads its own; a replica has its layers too."""
    engine = Engine(stage=stage, replica=replica)
    EngineState(engine).save(tmp_path)
    saved = sorted(file.name for file in (tmp_path / "state").iterdir())
    assert saved == [f"layer_{stage:02d}-model_states.pt", NAMES[stage]]
    EngineState(engine).load(tmp_path)
    assert {*NAMES} < {*engine.found}
    assert engine.found[NAMES[stage]] == f"stage {stage}"
    assert engine.found[f"layer_{stage:02d}-model_states.pt"] == "layer"
    assert sorted(file.name for file in (tmp_path / "state").iterdir()) == saved, "as it was saved"
    assert engine.module._grid.data_parallel_id == replica


def test_a_save_that_fails_leaves_the_replica_as_it_was(tmp_path: Path) -> None:
    engine = Engine(stage=1, replica=1, fails=True)
    with pytest.raises(OSError, match="no room"):
        EngineState(engine).save(tmp_path)
    assert engine.module._grid.data_parallel_id == 1


def test_an_engine_without_stages_loads_from_its_directory(tmp_path: Path) -> None:
    engine = Engine(stage=0)
    engine.mp_world_size = 1
    EngineState(engine).save(tmp_path)
    EngineState(engine).load(tmp_path)
    assert {*engine.found} == {NAMES[0], "layer_00-model_states.pt"}
