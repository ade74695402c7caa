"""`run.loader()`: loops that babysit does not make go on at the exact batch of torch loaders."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

import babysit
from babysit import rng
from babysit.errors import StateMismatchError
from babysit.run_loader import Loader

EPOCH = 5
"""Batches of a pass over each loader below."""
SKIPPED = ((3, 4), (7, 7))


class Noisy(Dataset[int]):
    """Ten samples, each with noise from the global generator, as augmentation draws it."""

    def __len__(self) -> int:
        return 2 * EPOCH

    def __getitem__(self, index: int) -> int:
        return 1000 * index + int(torch.randint(0, 1000, ()))


class Stream(IterableDataset[int]):
    """The same, in one order and without a length."""

    def __iter__(self) -> Iterator[int]:
        return (1000 * i + int(torch.randint(0, 1000, ())) for i in range(2 * EPOCH))


class OneIterator:
    """A loader that is its own iterator, and starts anew with each `iter`, as DeepSpeed's is."""

    def __init__(self) -> None:
        self.loader = DataLoader(Noisy(), batch_size=2, shuffle=True)
        self.rest: Iterator[Any] = iter(())

    def __iter__(self) -> OneIterator:
        self.rest = iter(self.loader)
        return self

    def __next__(self) -> Any:
        return next(self.rest)


LOADERS: dict[str, Callable[[], Any]] = {
    "shuffled": lambda: DataLoader(Noisy(), batch_size=2, shuffle=True),
    "workers": lambda: DataLoader(Noisy(), batch_size=2, shuffle=True, num_workers=1),
    "distributed": lambda: DataLoader(
        Noisy(), sampler=DistributedSampler(Noisy(), num_replicas=2, rank=1)
    ),
    "iterable": lambda: DataLoader(Stream(), batch_size=2),
    "one iterator": OneIterator,
}


def _run(skip: tuple[tuple[int, int], ...] = (), **options: Any) -> babysit.Run:
    run = babysit.init(**options)
    run.plan = dataclasses.replace(run.plan, skip_batches=skip)
    return run


def _train(
    make: Callable[[], Any], count: int, saved: Any = None, skip: tuple[tuple[int, int], ...] = ()
) -> tuple[list[Any], Any]:
    """Draw `count` batches as a framework does, which restores generators after the first one."""
    torch.manual_seed(7 if saved is None else 99)
    run = _run(skip)
    loader = Loader(run, make(), framework=True, joins=True)
    found: list[Any] = []
    restored = saved is None
    if saved is not None:
        loader.load_state_dict(saved[0])
        if run.batch % EPOCH == 0:
            rng.apply(saved[1])
            restored = True
    while len(found) < count:
        for batch in loader:
            if not restored:
                rng.apply(saved[1])
                restored = True
            torch.rand(3)  # training draws too
            found.append((run.batch, batch.tolist()))
            if len(found) == count:
                break
    return found, (loader.state_dict(), rng.capture())


@pytest.mark.parametrize("kind", LOADERS)
def test_a_framework_goes_on_at_the_batch_of_the_state(kind: str) -> None:
    make = LOADERS[kind]
    for skip in ((), SKIPPED):
        straight, _ = _train(make, 9, skip=skip)
        assert not any(low <= number <= high for number, _ in straight for low, high in skip)
        cuts = range(1, 9) if kind != "workers" else (3, 5)
        for cut in cuts:
            before, state = _train(make, cut, skip=skip)
            after, _ = _train(make, 9 - cut, state, skip)
            assert before + after == straight, cut


def _epochs(
    directory: Path, *, ends: int, by_run: bool, joined: list[Any], again: bool = False
) -> None:
    """Three passes of a script's own loop, which dies after `ends` batches of this process."""
    torch.manual_seed(99 if again else 7)
    run = _run(checkpoint=directory, every_steps=1)
    loader = run.loader(LOADERS["shuffled"]())
    step = run.restore({})
    for _ in run.epochs(3) if by_run else range(3):
        for batch in loader:
            step += 1
            torch.rand(3)
            joined.append((run.batch, batch.tolist()))
            run.report(step=step, loss=1.0)
            run.checkpoint({}, step=step)
            ends -= 1
            if not ends:
                run.flush()
                return


@pytest.mark.parametrize("by_run", [True, False])
def test_a_script_goes_on_at_the_batch_of_the_checkpoint(tmp_path: Path, *, by_run: bool) -> None:
    straight: list[Any] = []
    _epochs(tmp_path / "straight", ends=99, by_run=by_run, joined=straight)
    assert len(straight) == 3 * EPOCH
    for cut in (2, EPOCH, EPOCH + 1):
        joined: list[Any] = []
        for again in (False, True):
            place = tmp_path / f"cut-{cut}"
            ends = 99 if again else cut
            _epochs(place, ends=ends, by_run=by_run, joined=joined, again=again)
        assert joined == straight, cut


def test_it_is_the_loader_in_all_else() -> None:
    inner = DataLoader(Noisy(), batch_size=2)
    loader = _run().loader(inner)
    assert len(loader) == EPOCH
    assert loader.dataset is inner.dataset
    with pytest.raises(TypeError):
        len(_run().loader(DataLoader(Stream())))
    with pytest.raises(StateMismatchError, match="saved without it"):
        loader.load_state_dict({"next": 3})


def test_accelerates_loader_is_not_drawn_ahead() -> None:
    accelerate = pytest.importorskip("accelerate", exc_type=ImportError)
    accelerator = accelerate.Accelerator(cpu=True)
    accelerator.gradient_state._set_sync_gradients(True)

    def make() -> Any:
        return accelerator.prepare_data_loader(DataLoader(Noisy(), batch_size=2, shuffle=True))

    straight, _ = _train(make, 9, skip=SKIPPED)
    for cut in (1, 4, 8):
        before, state = _train(make, cut, skip=SKIPPED)
        after, _ = _train(make, 9 - cut, state, SKIPPED)
        assert before + after == straight, cut
    prepared = make()
    loader = _run(SKIPPED).loader(prepared)
    ends = [accelerator.gradient_state.end_of_dataloader for _ in loader]
    assert ends == [False, False, True], "its last batch is known as such"
    assert accelerator.gradient_state.active_dataloader is not prepared
