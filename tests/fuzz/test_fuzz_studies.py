"""Studies of strangers: whatever their files hold, a command answers or says in one line what is wrong."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import strategies as st

if TYPE_CHECKING:
    from tests.fuzz.conftest import Fuzz, World

READING = [
    ["show", "STUDY"], ["show", "STUDY", "0"], ["show", "STUDY", "1", "--json"], ["best", "STUDY"],
    ["best", "STUDY", "--json"], ["diagnose", "STUDY"], ["diagnose", "STUDY", "1"], ["compare", "STUDY", "GOOD"],
    ["importance", "STUDY"], ["ablate", "STUDY", "--list"], ["list", "--runs-dir", "RUNS"],
    ["describe", "STUDY", "0"], ["predict", "STUDY", "IMAGE"], ["show", "STUDY", "--json"],
]  # fmt: skip
GOING_ON = [
    ["resume", "STUDY"], ["extend", "STUDY", "--trials", "9"], ["extend", "STUDY", "--epochs", "12"],
    ["search", "SPACE", "--warm-start", "STUDY", "--dry-run"], ["search", "recipe", "--from", "STUDY", "--dry-run"],
    ["reproduce", "STUDY", "0"], ["ablate", "STUDY"], ["best", "STUDY", "--retrain"],
]  # fmt: skip


def words_of(words: list[str], world: World, study: Any) -> list[str]:
    """A command with the paths that are meant."""
    meant = {
        "STUDY": study, "GOOD": world.study, "RUNS": study.parent, "SPACE": world.space,
        "IMAGE": world.images / "cat" / "0.png",
    }  # fmt: skip
    return [str(meant.get(word, word)) for word in words]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "commands"),
    [(300, READING), (120, GOING_ON), (10, [["report", "STUDY"]])],
    ids=["read", "go on", "report"],
)
def test_records_whose_checksums_fit(number: int, commands: list[list[str]], world: World, fuzz: type[Fuzz]) -> None:
    events = [json.loads(line) for line in (world.study / "journal.jsonl").read_text().splitlines()]
    for event in events:
        del event["crc"]
    whole = [fuzz.checked_line(event) for event in events]

    def case(data: st.DataObject) -> None:
        lines = list(whole)
        for _ in range(data.draw(st.integers(1, 2))):
            at = data.draw(st.integers(0, len(lines) - 1))
            how = data.draw(st.integers(0, 12))
            if how == 0:
                del lines[at]
            elif how == 1:
                other = data.draw(st.integers(0, len(lines) - 1))
                lines[at], lines[other] = lines[other], lines[at]
            elif how == 2:
                lines.insert(at, lines[at])
            elif how == 3:
                lines[at] = fuzz.checked_line(
                    {"event": data.draw(st.text(max_size=9)), "trial": data.draw(fuzz.hostile)}
                )
            elif how == 4:
                lines[at] = fuzz.checked_line({**events[min(at, len(events) - 1)], "trial": data.draw(fuzz.hostile)})
            else:
                changed = data.draw(fuzz.spoilt(events[min(at, len(events) - 1)]))
                lines[at] = fuzz.checked_line(changed if isinstance(changed, dict) else {"event": changed})
        study = world.fresh(world.study)
        (study / "journal.jsonl").write_bytes(b"".join(lines))
        world.ask(*words_of(data.draw(st.sampled_from(commands)), world, study)).check()

    fuzz.run(number, case)


@pytest.mark.slow
def test_records_of_any_bytes(world: World, fuzz: type[Fuzz]) -> None:
    content = (world.study / "journal.jsonl").read_bytes()

    def case(data: st.DataObject) -> None:
        study = world.fresh(world.study)
        (study / "journal.jsonl").write_bytes(data.draw(fuzz.spoilt_bytes(content)))
        world.ask(*words_of(data.draw(st.sampled_from([*READING, ["resume", "STUDY"]])), world, study)).check()

    fuzz.run(120, case)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "commands"), [(250, READING), (150, GOING_ON)], ids=["read", "go on"])
def test_descriptions_of_studies(number: int, commands: list[list[str]], world: World, fuzz: type[Fuzz]) -> None:
    info = json.loads((world.study / "study.json").read_text())

    def case(data: st.DataObject) -> None:
        study = world.fresh(world.study)
        (study / "study.json").write_text(fuzz.as_text(data.draw(fuzz.spoilt(info))))
        world.ask(*words_of(data.draw(st.sampled_from(commands)), world, study)).check()

    fuzz.run(number, case)


@pytest.mark.slow
def test_other_files_of_studies(world: World, fuzz: type[Fuzz]) -> None:
    names = ["study.json", "optuna.journal", "trials.jsonl", "trials.csv", "lock", "earlier.jsonl"]

    def case(data: st.DataObject) -> None:
        study = world.fresh(world.study)
        name = data.draw(st.sampled_from(names))
        known = (study / name).read_bytes() if (study / name).exists() else b'{"study": "a", "number": 0}\n'
        (study / name).write_bytes(data.draw(fuzz.spoilt_bytes(known)))
        world.ask(*words_of(data.draw(st.sampled_from([*READING, *GOING_ON])), world, study)).check()

    fuzz.run(80, case)
