from __future__ import annotations

import dataclasses

import pytest

from tunelab.errors import InputError
from tunelab.tuning.quota import RAY_MIB, capped, in_words, share_memory
from tunelab.tuning.slots import Slots

MIB = 2**20
FOUR = Slots(4, 1, 0.0, "cpu")


def test_a_search_takes_what_is_free_or_what_is_allowed() -> None:
    assert capped(9000.0, None, "cpu") == 9000.0
    assert capped(9000.0, 2000 * MIB, "cpu") == 2000 + RAY_MIB, "that of the trials: Ray's own is beside it"
    assert capped(1500.0, 2000 * MIB, "cpu") == 1500.0
    assert capped(9000.0, 1200 * MIB, "cuda") == 1200 + RAY_MIB


@pytest.mark.parametrize(("device", "least"), [("cpu", 470), ("cuda", 1070)])
def test_a_process_has_to_fit(device: str, least: int) -> None:
    with pytest.raises(InputError, match=f"--memory: {least - 1} MiB is too little, .* give at least {least}MiB"):
        capped(9000.0, least * MIB - 1 * MIB, device)


@pytest.mark.parametrize(
    ("memory", "needed", "concurrent", "images"),
    [
        (4000, 1000.0, 4, 0),
        (4400, 1000.0, 4, 100),
        (3999, 1000.0, 3, 333),
        (1000, 1000.0, 1, 0),
        (1500, 1000.0, 1, 500),
        (4000, 0.0, 4, 530),
        (990, 0.0, 2, 25),
    ],
)
def test_trials_share_what_is_allowed(memory: int, needed: float, concurrent: int, images: int) -> None:
    """Together they never take more, images included."""
    found = share_memory(FOUR, memory * MIB, needed)
    assert found == dataclasses.replace(FOUR, concurrent=concurrent, memory=found.memory)
    assert found.memory is not None
    assert found.memory // MIB == images
    assert found.concurrent * (found.memory + (needed or 470) * MIB) <= memory * MIB


def test_one_trial_has_to_fit() -> None:
    with pytest.raises(InputError, match="the largest trial of this search takes 1536 MiB; give at least 1536MiB"):
        share_memory(FOUR, 1500 * MIB, 1536.0)


def test_without_a_bound_nothing_changes() -> None:
    assert share_memory(FOUR, None, 1000.0) == FOUR
    assert in_words(FOUR) == ""


def test_in_words() -> None:
    assert in_words(share_memory(FOUR, 4400 * MIB, 1000.0)) == "; 100 MiB each left for images"
    assert in_words(share_memory(FOUR, 1500 * MIB, 1000.0)) == "; 500 MiB left for images"
