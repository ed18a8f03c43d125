from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from tunelab.analysis import profile as module
from tunelab.analysis.plots import draw_by_batch_size, epoch_time, peak_memory
from tunelab.analysis.profile import describe_point, print_profile, profile, recommend, rows_of

from tunelab.errors import InputError
from tunelab.tuning.profile import Figures, Point, Setting, Subject, trial_subject

if TYPE_CHECKING:
    from tests.conftest import MakeStudy

FREE = 4000.0


def point(
    batch_size: int, rate: float, threads: int = 1, device: str = "cpu", memory: float = 500.0, note: str = ""
) -> Point:
    """A point with so many images per second and 1000 images per epoch."""
    on_device = 100.0 + batch_size if device == "cuda" else None
    figures = Figures(batch_size / rate, 1000 / rate, rate, memory, on_device, 9)
    return Point(Setting(device, threads, batch_size), figures, note=note)


FAILED = Point(Setting("cuda", 1, 512), failed="out of memory")
POINTS = [point(64, 800), point(128, 1000), point(64, 8000, device="cuda"), point(128, 9000, device="cuda"), FAILED]


@pytest.fixture
def subject(make_study: MakeStudy) -> Subject:
    study = make_study([("COMPLETED", [0.1, 0.2, 0.3, 0.4])])
    return trial_subject(study, study.trial(0))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Setting]:
    """Nothing is measured: 10 images per second and image of a batch; 64 fails, and Ctrl-C comes at 128."""
    asked: list[Setting] = []

    def measure(subject: Subject, setting: Setting, seconds: float, before: Any, command: Any) -> Point:
        assert len(before) == len(asked)
        asked.append(setting)
        if setting.batch_size == 128:
            raise KeyboardInterrupt
        return Point(setting, failed="out of memory") if setting.batch_size == 64 else point(setting.batch_size, 1000)

    monkeypatch.setattr(module, "measure", measure)
    return asked


def settings(*sizes: int) -> list[Setting]:
    return [Setting("cpu", 1, size) for size in sizes]


@pytest.mark.parametrize(
    ("points", "own", "chosen", "said"),
    [
        (
            [point(32, 500), point(128, 1000), point(512, 1050)],
            128,
            ("cpu", 1, 128),
            "1000 images/s, and cpu, 1 thread, batch 512 has 5% more, which may be chance (up to 10%); the batch size "
            "is the configuration's own",
        ),
        (
            [point(32, 500), point(128, 1000), point(512, 1200)],
            128,
            ("cpu", 1, 512),
            "1200 images/s, the fastest of what was measured; 20% more than cpu, 1 thread, batch 128, the "
            "configuration's own batch size",
        ),
        (
            [point(128, 1000), point(128, 1500, threads=2), point(512, 1520, threads=2)],
            128,
            ("cpu", 2, 128),
            "1500 images/s, and cpu, 2 threads, batch 512 has 1% more, which may be chance (up to 10%); the batch size "
            "is the configuration's own",
        ),
        (
            [point(32, 500), point(64, 1000), point(512, 1050)],
            32,
            ("cpu", 1, 64),
            "1000 images/s, and cpu, 1 thread, batch 512 has 5% more, which may be chance (up to 10%); 100% more than "
            "cpu, 1 thread, batch 32, the configuration's own batch size",
        ),
        (
            [point(128, 1000), point(128, 5000, device="cuda")],
            128,
            ("cuda", 1, 128),
            "5000 images/s, the fastest of what was measured; the batch size is the configuration's own",
        ),
        (
            [point(64, 1000), FAILED],
            512,
            ("cpu", 1, 64),
            "1000 images/s, the fastest of what was measured; the configuration's own batch size of 512 has no figures",
        ),
    ],
)
def test_the_fastest_is_recommended_unless_the_gain_may_be_chance(
    points: list[Point], own: int, chosen: tuple[str, int, int], said: str
) -> None:
    found = recommend(points, own, 1000, FREE)
    assert found is not None
    assert (found["device"], found["threads"], found["batch_size"]) == chosen
    assert found["reason"] == said


def test_what_takes_more_than_the_free_memory_is_not_recommended() -> None:
    points = [point(64, 800), point(128, 2000, memory=FREE + 1)]
    found = recommend(points, 128, 1000, FREE)
    assert found is not None
    assert found["batch_size"] == 64
    assert recommend(points[1:], 128, 1000, FREE) is None
    assert recommend([FAILED], 128, 1000, FREE) is None


def test_a_batch_of_more_than_all_images_is_recommended_only_if_it_is_the_configurations_own() -> None:
    points = [point(64, 800), point(2048, 4000)]
    for own, chosen in ((64, 64), (2048, 2048)):
        found = recommend(points, own, 1000, FREE)
        assert found is not None
        assert found["batch_size"] == chosen


def test_a_row_has_figures_or_a_reason() -> None:
    first, failed = rows_of([POINTS[2], FAILED])
    assert first == {
        "device": "cuda",
        "threads": 1,
        "batch_size": 64,
        "seconds_per_step": pytest.approx(0.008),
        "seconds_per_epoch": pytest.approx(0.125),
        "images_per_second": 8000,
        "epochs_per_hour": pytest.approx(28800),
        "peak_host_mib": 500,
        "peak_device_mib": 164,
        "steps_timed": 9,
        "failed": "",
        "note": "",
    }
    assert failed["failed"] == "out of memory"
    assert [name for name, value in failed.items() if value is None] == list(first)[3:10]
    assert describe_point(POINTS[2]) == (
        "cuda, 1 thread, batch 64: 8000 images/s, 0.125 s per epoch, 500 MiB, 164 MiB of the GPU"
    )
    assert describe_point(FAILED) == "cuda, 1 thread, batch 512: out of memory"


def test_the_plots_have_a_line_for_each_device_and_number_of_threads() -> None:
    assert epoch_time(POINTS) == [
        {"line": "cpu, 1 thread", "batch_size": 64, "value": 1.25},
        {"line": "cpu, 1 thread", "batch_size": 128, "value": 1.0},
        {"line": "cuda, 1 thread", "batch_size": 64, "value": 0.125},
        {"line": "cuda, 1 thread", "batch_size": 128, "value": pytest.approx(1 / 9)},
    ]
    assert [(row["line"], row["value"]) for row in peak_memory(POINTS[1:3])] == [
        ("cpu, 1 thread", 500),
        ("cuda, 1 thread: on the GPU", 164),
        ("cuda, 1 thread: on the host", 500),
    ]


@pytest.mark.parametrize("points", [POINTS[:1], POINTS, [*POINTS, point(256, 5, threads=2)]])
def test_the_drawing_is_a_picture_with_a_colour_for_each_line(points: list[Point], tmp_path: Path) -> None:
    rows = epoch_time(points)
    draw_by_batch_size(rows, tmp_path / "plot.png", "a title", "seconds")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.format == "PNG"
        colours = {colour for _, colour in picture.convert("RGB").getcolors(maxcolors=1_000_000) or []}
    drawn = [colour in colours for colour in ((31, 119, 180), (255, 127, 14), (44, 160, 44))]
    lines = len({row["line"] for row in rows})
    assert drawn == [number < lines for number in range(3)]


def test_a_profile_is_written_as_tables_and_plots(
    subject: Subject, measured: list[Setting], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "profile"
    found = profile(subject, settings(16, 32, 64), 0.5, folder)
    assert [one.batch_size for one in measured] == [16, 32, 64]
    assert found["complete"] is True
    assert json.loads((folder / "profile.json").read_text()) == found
    assert sorted(file.name for file in folder.iterdir()) == [
        "epoch_time.png",
        "peak_memory.png",
        "profile.csv",
        "profile.json",
    ]
    with (folder / "profile.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["batch_size"], row["images_per_second"], row["failed"]) for row in rows] == [
        ("16", "1000", ""),
        ("32", "1000", ""),
        ("64", "", "out of memory"),
    ]
    assert found["configuration"]["config"]["train"]["batch_size"] == 32
    assert found["machine"]["cpus"] >= 1
    assert "torch" in found["versions"]
    assert found["recommended"]["batch_size"] == 32
    assert capsys.readouterr().err.splitlines()[2] == "3 of 3: cpu, 1 thread, batch 64: out of memory"
    print_profile(found)
    said = capsys.readouterr().out
    assert "study, trial 0: 3x3-4 [basic, /2 basic]" in said
    assert "100 training and " in said
    assert "at equal epochs" in said
    assert "not at equal steps, nor at equal time" in said
    lines = said.splitlines()
    assert next(line for line in lines if "out of memory" in line).split()[:4] == ["cpu", "1", "64", "-"]
    assert [line.rstrip().endswith("recommended") for line in lines if line.startswith("cpu ")] == [False, True, False]
    assert lines[-1] == f"files: {folder}"


def test_an_interrupt_leaves_what_was_measured_by_then(
    subject: Subject, measured: list[Setting], tmp_path: Path
) -> None:
    (tmp_path / "epoch_time.png").write_text("of an earlier profile")
    found = profile(subject, settings(32, 64, 128, 256), 0.5, tmp_path)
    assert [one.batch_size for one in measured] == [32, 64, 128]
    assert found["complete"] is False
    assert [row["batch_size"] for row in found["points"]] == [32, 64]
    assert json.loads((tmp_path / "profile.json").read_text()) == found
    assert len((tmp_path / "profile.csv").read_text().splitlines()) == 3
    with Image.open(tmp_path / "epoch_time.png") as picture:
        assert picture.format == "PNG"


def test_where_nothing_was_measured_there_are_no_plots(
    subject: Subject, measured: list[Setting], tmp_path: Path
) -> None:
    for name in ("epoch_time.png", "profile.csv"):
        (tmp_path / name).write_text("of an earlier profile")
    found = profile(subject, settings(64), 0.5, tmp_path)
    assert found["recommended"] is None
    assert sorted(file.name for file in tmp_path.glob("*.*")) == ["profile.csv", "profile.json"]
    assert (tmp_path / "profile.csv").read_text().splitlines()[1:] == ["cpu,1,64,,,,,,,,out of memory,"]


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_measured(
    subject: Subject, measured: list[Setting], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/profile cannot be written to \(Not a directory\); --out names another"):
        profile(subject, settings(32), 0.5, tmp_path / "file" / "profile")
    assert measured == []
