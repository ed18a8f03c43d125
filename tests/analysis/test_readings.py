from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tunelab.analysis import readings
from tunelab.analysis.readings import FILE, count_trainings, describe, earlier, record

from tunelab.errors import TunelabError

if TYPE_CHECKING:
    from tests.conftest import MakeStudy


def old_retraining(study: Path, name: str, content: str, time: float) -> None:
    """A folder from before readings were recorded."""
    (study / name).mkdir()
    file = study / name / "metrics.json"
    file.write_text(content)
    os.utime(file, (time, time))


def test_what_is_recorded_is_told_later(make_study: MakeStudy) -> None:
    study = make_study()
    assert earlier(study) == []
    assert describe([]) == ""
    first = record(study, study.path / "retrain-a", 7, 3)
    second = record(study, study.path / "retrain-b", 2, 1)
    assert earlier(study) == [first, second]
    assert count_trainings(earlier(study)) == 4
    assert first["folder"] == "retrain-a"
    said = describe(earlier(study))
    assert said.startswith("the test images of this study had been read 2 times before: 20")
    assert "(trial 7, 3 trainings), " in said
    assert said.endswith("(trial 2, 1 training)")


def test_of_many_the_last_are_named(make_study: MakeStudy) -> None:
    study = make_study()
    for number in range(7):
        record(study, study.path / "retrain-a", number, 1)
    said = describe(earlier(study))
    assert "read 7 times before: 2 earlier ones, " in said
    assert "(trial 2, 1 training)" in said
    assert "(trial 1, 1 training)" not in said


def test_it_is_on_the_disk_before_it_returns(make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study()
    synced: list[str] = []
    fsync = os.fsync

    def watched(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").resolve().name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    record(study, study.path / "retrain-a", 7, 3)
    assert synced == [FILE, study.path.name], "the file, then its name in the folder"


def test_a_line_that_was_torn_is_no_reading_and_hides_none(make_study: MakeStudy) -> None:
    study = make_study()
    first = record(study, study.path / "retrain-a", 7, 3)
    path = study.path / FILE
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    assert earlier(study) == [first]
    second = record(study, study.path / "retrain-a", 7, 3)
    assert earlier(study) == [first, second]


def test_retrainings_from_before_there_was_a_record_count(make_study: MakeStudy) -> None:
    study = make_study()
    metrics: dict[str, Any] = {"trial": 4, "seeds": [{}, {}]}
    old_retraining(study.path, "retrain-old", json.dumps(metrics), 1_800_000_000)
    old_retraining(study.path, "retrain-damaged", "{", 1_700_000_000)
    new = record(study, study.path / "retrain-new", 7, 3)
    old_retraining(study.path, "retrain-new", json.dumps(metrics), 1_900_000_000)
    found = earlier(study)
    assert [reading["folder"] for reading in sorted(found, key=lambda one: one["folder"])] == [
        "retrain-damaged", "retrain-new", "retrain-old",
    ]  # fmt: skip
    assert new in found, "once, by its line"
    assert count_trainings(found) == 6
    assert "(trial unknown, 1 training)" in describe(found)


def test_where_it_cannot_be_written_nothing_may_be_read(make_study: MakeStudy) -> None:
    study = make_study()
    (study.path / FILE).mkdir()
    with pytest.raises(TunelabError, match=f"{FILE} cannot be written, so the test images are not read"):
        record(study, study.path / "retrain-a", 7, 3)


def test_readings_need_neither_torch_nor_ray() -> None:
    code = "import sys, tunelab.analysis.readings; print(*({'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
    assert readings.FILE == "test_reads.jsonl"
