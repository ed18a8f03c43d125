from __future__ import annotations

from typing import Any

import numpy as np

from tunelab.tuning.candidates import Rows


def test_a_configuration_is_encoded_again_only_on_another_scale() -> None:
    def encode(params: Any, stats: Any) -> Any:
        asked.append(len(params))
        return np.array([[one["x"] * factor] for one in params]).reshape(len(params), 1)

    asked: list[int] = []
    factor = 1
    rows = Rows()
    size: dict[str, Any] = {}
    some: list[tuple[dict[str, Any], dict[str, Any]]] = [({"x": place}, size) for place in range(5)]
    rows.begin("one scale")
    assert rows.of(some, encode).tolist() == [[0], [1], [2], [3], [4]]
    assert rows.of([], encode).shape == (0, 1)
    rows.begin("one scale")
    assert rows.of([some[3], ({"x": 7}, size), some[3]], encode).tolist() == [[3], [7], [3]]
    rows.begin("one scale")
    assert rows.of(some[:4], encode).tolist() == [[0], [1], [2], [3]], "what was not asked for was forgotten"
    assert asked == [5, 0, 1, 3]
    factor = 2
    rows.begin("another scale")
    assert rows.of(some[:4], encode).tolist() == [[0], [2], [4], [6]]


def test_objects_whose_rows_are_known_are_kept_so_that_no_other_takes_their_place() -> None:
    rows = Rows()
    for number in range(200):
        rows.begin("scale")
        found = rows.of([({"x": number}, {})], lambda params, stats: np.array([[one["x"]] for one in params]))
        assert found.tolist() == [[number]]
