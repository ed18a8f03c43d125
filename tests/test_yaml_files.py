"""YAML that grows when it is read or used is refused before it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tunelab.errors import InputError
from tunelab.yaml_files import compose, load

LAUGHS = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'ha'] * 9)}]\n" for n in range(9))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "holds more than 1,000,000 values, as it means some again and again"),
        ("a: &a [*a]", "line 1: a list or a mapping contains itself"), ("[" * 5000, "is nested too deeply"),
        ("," * 1_000_001, "holds more than 1,000,000 values"),
        ("x" * 2_000_000, "it is larger than 1,500,000 bytes"),
        ("a: {", "is not YAML"), ("\x00", "is not YAML"), ("n: " + "9" * 5000, "is not YAML"),
        ("d: 2026-99-99", "is not YAML"),
        ("!!python/object/apply:os.system [ls]", "is not YAML"), ("!!binary a", "is not YAML"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        load(tmp_path / "file.yaml", 1_500_000, "not YAML")
    assert len(str(caught.value)) < 1000


def test_what_is_meant_again_now_and_then_is_read(tmp_path: Path) -> None:
    (tmp_path / "file.yaml").write_text("\ufeffa: &a [1, 2]\nb: [*a, *a]\n", encoding="utf-8")
    assert load(tmp_path / "file.yaml", 100, "not YAML") == {"a": [1, 2], "b": [[1, 2], [1, 2]]}
    (tmp_path / "file.yaml").write_text("")
    assert compose(tmp_path / "file.yaml", 100, "not YAML") is None
    with pytest.raises(InputError, match="cannot be read: No such file"):
        compose(tmp_path / "none.yaml", 100, "not YAML")
