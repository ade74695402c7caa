"""Deals the rest of an epoch out anew after a change of the number of ranks.

A `DistributedSampler` deals one order of all samples out to the ranks in turn. What its ranks have
drawn after some batches of equal size is therefore the beginning of that order, whatever their
number, and the rest can be dealt out to any other number of ranks: no sample comes twice or never,
apart from the sampler's own padding at the end of an epoch. Batches keep the numbers that they had
for the ranks with which the run began, so a quarantine names the same samples.

Only torch's own sampler and batches of one size are known well enough. With others each rank goes
on at its batch, which :mod:`babysit.checkpoint.restore` warns of.
"""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple


class Reference(NamedTuple):
    """The number of ranks with which a run began: batches are numbered as those ranks drew them.

    So a number (of a quarantined batch, say) names the same samples after a change of the ranks. A
    batch of more samples than a number stands for has several, and one of fewer shares its own.
    """

    ranks: int
    per_number: int
    """Samples that a number stands for."""
    numbers: int
    """Numbers of an epoch."""
    samples: int
    """Samples of the data set."""

    def span(self, first: int, after: int) -> tuple[int, int]:
        """The numbers, from 1 in each epoch, of the samples from `first` to before `after`."""
        low, high = first // self.per_number + 1, -(-after // self.per_number)
        return min(low, self.numbers), min(high, self.numbers)


class GlobalOrder:
    """The order of all samples behind one rank's loader."""

    def __init__(self, sampler: Any, batch_size: int, *, drop_last: bool) -> None:
        self._sampler, self._batch_size, self._drop_last = sampler, batch_size, drop_last

    @property
    def per_batch(self) -> int:
        """Samples that all ranks together draw in a batch."""
        return int(self._batch_size * self._sampler.num_replicas)

    @property
    def ranks(self) -> int:
        """Ranks that the order is dealt out to."""
        return int(self._sampler.num_replicas)

    @property
    def samples(self) -> int:
        """Samples of the data set."""
        return len(self._sampler.dataset)

    def reference(self, ranks: int) -> Reference:
        """How batches would be numbered with another number of ranks."""
        whole = self.samples // ranks if self._sampler.drop_last else -(-self.samples // ranks)
        size = self._batch_size
        batches = whole // size if self._drop_last else -(-whole // size)
        return Reference(ranks, self._batch_size * ranks, batches, self.samples)

    def batches(self, base: int) -> Iterator[list[Any]]:
        """This rank's index batches of what follows the first `base` samples of the epoch."""
        ranks, rank = self._sampler.num_replicas, self._sampler.rank
        order = self._order()
        rest = order[base:]
        if self._sampler.drop_last:
            rest = rest[: len(rest) - len(rest) % ranks]
        elif rest:  # as the sampler does: all ranks draw the same number
            rest += itertools.islice(itertools.cycle(order), -len(rest) % ranks)
        mine = rest[rank::ranks]
        for first in range(0, len(mine), self._batch_size):
            batch = mine[first : first + self._batch_size]
            if len(batch) == self._batch_size or not self._drop_last:
                yield batch

    def _order(self) -> list[Any]:
        whole = copy.copy(self._sampler)
        whole.num_replicas, whole.rank = 1, 0
        whole.num_samples = whole.total_size = len(whole.dataset)
        return list(whole)


def order_of(loader: Any) -> GlobalOrder | None:
    """The global order of a torch DataLoader; None: it has none, or it is not known."""
    torch_data, module = (
        sys.modules.get(f"torch.utils.data{part}") for part in ("", ".distributed")
    )
    if torch_data is None or module is None or not isinstance(loader, torch_data.DataLoader):
        return None
    batches = loader.batch_sampler
    if type(batches) is not torch_data.BatchSampler:
        return None
    if type(batches.sampler) is not module.DistributedSampler:
        return None
    return GlobalOrder(batches.sampler, batches.batch_size, drop_last=batches.drop_last)
