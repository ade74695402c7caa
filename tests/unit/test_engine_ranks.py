"""A checkpoint of DeepSpeed that another number of ranks saved is refused, with what to do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from babysit.errors import StateMismatchError
from babysit.integrations.deepspeed import require_ranks

FOUR, TWO = SimpleNamespace(world_size=4), SimpleNamespace(world_size=2)


@pytest.mark.parametrize(
    ("place", "tag", "shards"),
    [
        ("rank-00001", "state", "rank-*/state"),
        ("rank-00001/checkpoint-7", "global_step7", "rank-*/checkpoint-7/global_step7"),
    ],
)
def test_the_refusal_names_the_shards(tmp_path: Path, place: str, tag: str, shards: str) -> None:
    directory = tmp_path / place
    directory.mkdir(parents=True)
    (directory / "ranks.json").write_text("4")
    require_ranks(FOUR, directory, tag, tmp_path)
    with pytest.raises(StateMismatchError) as refused:
        require_ranks(TWO, directory, tag, tmp_path)
    assert "4 ranks saved it with DeepSpeed, and this attempt has 2. Give the run 4" in str(
        refused.value
    )
    assert f"cp -rn {tmp_path}/{shards} MERGED/)" in str(refused.value)
    assert f"--input_folder MERGED/{tag} " in str(refused.value)


def test_a_checkpoint_without_a_number_is_taken(tmp_path: Path) -> None:
    require_ranks(TWO, tmp_path / "rank-00000", "state", tmp_path)
