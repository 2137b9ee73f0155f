"""The order in which training sees its examples: shuffled, with examples of similar length in one batch.

A function of seed and epoch alone, so that a run resumed in the middle of an epoch sees exactly the rest of
it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

BATCHES_IN_A_POOL = 50  # sorted together: enough for little padding, few enough for a good shuffle


class LengthGrouped(Sampler[int]):
    """Indices pool by pool: a pool is a random set of examples sorted by length; its batches are then
    shuffled.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        source = random.Random(f"{self.seed}/{self.epoch}")
        order = list(range(len(self.lengths)))
        source.shuffle(order)
        pool_size = self.batch_size * BATCHES_IN_A_POOL
        batches: list[list[int]] = []
        for start in range(0, len(order), pool_size):
            pool = sorted(order[start : start + pool_size], key=lambda index: -self.lengths[index])
            batches += [
                pool[first : first + self.batch_size] for first in range(0, len(pool), self.batch_size)
            ]
        # A short batch stays last, or every batch after it would be cut at the wrong place.
        short = batches.pop() if len(batches[-1]) < self.batch_size else []
        source.shuffle(batches)
        for batch in [*batches, short]:
            yield from batch
