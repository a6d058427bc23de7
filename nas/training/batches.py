"""The samples of each step of a training, loaded beside the steps before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from multiprocessing import get_all_start_methods

import torch
from torch.utils.data import DataLoader

from nas.data import ENDLESS, Split, Tensors
from nas.evaluation.accuracy import cores
from nas.size import Size
from nas.training.recipe import Recipe
from nas.workers.ending import end_with_parent

AHEAD = 4  # batches that each process has loaded before they are needed


def batches(
    split: Split, recipe: Recipe, largest: Size, workers: int, first: int = 0, pinned: bool = False
) -> Iterator[Tensors]:
    """The samples of the steps from the `first` on, at the sizes of the recipe up to the `largest`.

    They depend on the step only, not on the number of `workers`, the processes that load them.
    """
    loader = DataLoader(
        _Steps(split, recipe, largest),
        batch_size=None,
        sampler=range(first, sum(recipe.steps())),
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        prefetch_factor=AHEAD if workers else None,
        pin_memory=pinned,
        # They hold what this process has locked.
        worker_init_fn=(lambda _: end_with_parent()) if workers else None,
    )
    return iter(loader)


class _Steps(torch.utils.data.Dataset[Tensors]):
    """The samples of each step as they are stored, by the number of the step."""

    def __init__(self, split: Split, recipe: Recipe, largest: Size) -> None:
        self.split, self.recipe, self.largest = split, recipe, largest

    def __getitem__(self, step: int) -> Tensors:
        recipe, split = self.recipe, self.split
        count = recipe.batches[recipe.phase(step)]
        epoch, offset = divmod(step * count, split.size)
        order: Sequence[int] = range(split.size)
        if split.size < ENDLESS:
            generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)
            order = torch.randperm(split.size, generator=generator).tolist()
        picked = [order[(offset + i) % split.size] for i in range(count)]
        arrays = split.batch(picked, recipe.size(step, self.largest))
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def loading_processes() -> int:
    """How many processes load samples beside the training: as many as cores, eight at most."""
    return min(8, cores()) if "fork" in get_all_start_methods() else 0
