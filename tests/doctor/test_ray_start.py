from __future__ import annotations

from pathlib import Path

from tunelab.doctor.ray_start import find_ray
from tunelab.errors import TunelabError


def test_a_ray_that_starts(tmp_path: Path) -> None:
    (found,) = find_ray(str(tmp_path), lambda *_asked: (3.0, 0.5))
    assert (found.verdict, found.measured) == ("ok", "started and ran a task in 3.0 s, stopped in 0.5 s")


def test_a_ray_that_takes_long(tmp_path: Path) -> None:
    assert [one.verdict for one in find_ray(str(tmp_path), lambda *_asked: (12.0, 0.5))] == ["warning"]


def test_a_ray_that_does_not_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    def fail(_folder: Path, log: Path, _patience: float) -> tuple[float, float]:
        log.write_text("starting\nERROR node.py: \x1b[31mno port is left\x1b[0m\nbye\n")
        raise TunelabError("Ray does not start: ValueError: no")

    (found,) = find_ray(str(tmp_path), fail)
    assert found.verdict == "error"
    assert found.measured.startswith("Ray does not start: ValueError: no (ERROR node.py: [31mno port is left")


def test_without_a_temporary_folder_nothing_is_started() -> None:
    def never(*_asked: object) -> tuple[float, float]:
        raise AssertionError

    assert [one.verdict for one in find_ray("", never)] == ["error"]
