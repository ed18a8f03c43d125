"""What one of several processes that train one network together takes of every batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Share:
    """The part of process `rank`, from 0, of `size`: the parts are equal, or the first ones longer by an image."""

    rank: int
    size: int

    def of(self, images: int) -> slice:
        """Its place among so many images."""
        each, more = divmod(images, self.size)
        start = self.rank * each + min(self.rank, more)
        return slice(start, start + each + (self.rank < more))

    def places(self, batches: int, images: int, *, before: bool = False) -> torch.Tensor:
        """Where its part of each of so many batches of so many images is among all of these, int64.

        With `before` each part begins with the image before it, before the first of a batch its last one.
        """
        own = self.of(images)
        inside = torch.arange(own.start - before, own.stop) % images
        return (torch.arange(batches)[:, None] * images + inside).flatten()

    def weight(self, images: int) -> float:
        """How often the mean over its part of so many images counts, for the mean over processes to be that of all."""
        own = self.of(images)
        return self.size * len(range(own.start, own.stop)) / images
