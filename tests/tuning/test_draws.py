from __future__ import annotations

import random
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FixedTrial

from tunelab.errors import InputError
from tunelab.space import Suggest, load_space
from tunelab.tuning.draws import Draw, Encoder, Scale, merge, reflect, require_same_kind

RANGES = [
    FloatDistribution(-2.0, 5.0),
    FloatDistribution(1e-4, 1.0, log=True),
    FloatDistribution(0.0, 1.0, step=0.25),
    IntDistribution(3, 12),
    IntDistribution(1, 1000, log=True),
    IntDistribution(0, 12, step=4),
    IntDistribution(7, 7),
]


def draw_all(suggest: Suggest) -> None:
    for place, one in enumerate(RANGES):
        if isinstance(one, IntDistribution):
            suggest.suggest_int(f"int_{place}", one.low, one.high, step=one.step, log=one.log)
        else:
            suggest.suggest_float(f"float_{place}", one.low, one.high, step=one.step, log=one.log)
    if suggest.suggest_categorical("kind", ("a", "b", None, True)) == "a":
        suggest.suggest_int("only_with_a", 1, 9)


@given(st.integers(0, 10_000))
@settings(max_examples=60)
def test_what_is_drawn_is_what_optuna_could_have_drawn(seed: int) -> None:
    draw = Draw(random.Random(seed))
    draw_all(draw)
    assert ("only_with_a" in draw.params) == (draw.params["kind"] == "a")
    for name, value in draw.params.items():
        assert draw.distributions[name]._contains(draw.distributions[name].to_internal_repr(value)), (name, value)
    again = FixedTrial(draw.params)
    draw_all(again)
    assert again.distributions == draw.distributions
    assert again.params == draw.params


@pytest.mark.parametrize("one", RANGES, ids=str)
def test_a_value_lies_where_its_place_says(one: IntDistribution | FloatDistribution) -> None:
    scale = Scale(one)
    places = np.linspace(0.001, 0.999, 301)
    values = [scale.value_at(place) for place in places]
    assert values == sorted(values)
    assert values[0] == pytest.approx(one.low, rel=0.02, abs=0.02)
    assert values[-1] == pytest.approx(one.high, rel=0.02)
    assert all(isinstance(value, int) == isinstance(one, IntDistribution) for value in values)
    assert [scale.value_at(scale.place_of(value)) for value in values] == pytest.approx(values)
    assert scale.places_of(np.array(values, dtype=float)) == pytest.approx([scale.place_of(v) for v in values])


def test_integers_have_equal_shares() -> None:
    scale = Scale(IntDistribution(1, 4))
    values = [scale.value_at(place) for place in np.linspace(0.0001, 0.9999, 4000)]
    assert [values.count(value) for value in (1, 2, 3, 4)] == pytest.approx([1000] * 4, abs=10)


def test_near_a_configuration_most_values_stay() -> None:
    near = Draw(random.Random(0))
    draw_all(near)
    for change, least, most in ((0.0, 1.0, 1.0), (0.3, 0.6, 0.9)):
        kept = []
        for seed in range(200):
            draw = Draw(random.Random(seed), near.params, change)
            draw_all(draw)
            kept += [draw.params.get(name) == value for name, value in near.params.items()]
        assert least <= np.mean(kept) <= most


def test_a_changed_number_moves_a_step_and_not_anywhere() -> None:
    moved = []
    for seed in range(300):
        draw = Draw(random.Random(seed), {"x": 0.5}, 1.0)
        moved.append(draw.suggest_float("x", 0.0, 1.0) - 0.5)
    assert np.std(moved) == pytest.approx(0.15, abs=0.03)


def test_what_the_known_configuration_lacks_is_drawn_anywhere() -> None:
    values = [Draw(random.Random(seed), {"y": 1.0}).suggest_float("x", 0.0, 1.0) for seed in range(300)]
    assert min(values) < 0.05
    assert max(values) > 0.95


def test_a_known_value_that_is_no_choice_any_more_is_drawn_anew() -> None:
    draw = Draw(random.Random(1), {"kind": "gone", "width": 99}, 0.0)
    assert draw.suggest_categorical("kind", ("a", "b")) in ("a", "b")
    assert draw.suggest_int("width", 1, 8) == 8


def test_a_name_that_is_asked_for_twice_has_one_value() -> None:
    draw = Draw(random.Random(3))
    assert draw.suggest_float("x", 0.0, 1.0) == draw.suggest_float("x", 0.0, 1.0) == draw.suggest_float("x", -1.0, 2.0)
    choices = (None, True, "a")
    assert draw.suggest_categorical("y", choices) == draw.suggest_categorical("y", choices)
    assert draw.suggest_categorical("none", (None,)) is draw.suggest_categorical("none", (None,)) is None
    with pytest.raises(InputError, match=r"^the space asks for 'x' twice, and its value .* is not in both ranges$"):
        draw.suggest_float("x", 2.0, 3.0)


def test_steps_beyond_an_end_come_back() -> None:
    assert [reflect(place) for place in (-0.2, 0.3, 1.1, 2.3)] == pytest.approx([0.2, 0.3, 0.9, 0.3])


def test_rows_of_numbers() -> None:
    distributions = {
        "width": CategoricalDistribution((8, 16, 64)),
        "kind": CategoricalDistribution(("a", "b", "c")),
        "flag": CategoricalDistribution((False, True)),
        "rate": FloatDistribution(0.01, 1.0, log=True),
    }
    params = [{"width": 16, "kind": "b", "flag": True, "rate": 0.1}, {"width": 64, "kind": "a", "flag": False}]
    rows = Encoder(distributions, pooled=False).rows(params)
    assert rows[0] == pytest.approx([0.5, 0.0, 1.0, 0.0, 1.0, 0.5])
    assert rows[1][:5] == pytest.approx([1.0, 1.0, 0.0, 0.0, 0.0])
    assert np.isnan(rows[1][5])


def test_parameters_that_differ_by_a_digit_share_columns() -> None:
    kinds = CategoricalDistribution(("basic", "inception", "other"))
    distributions = {f"block_{place:02d}_kind": kinds for place in (1, 2, 3)} | {"depth": IntDistribution(1, 3)}
    params = [
        {"depth": 3, "block_01_kind": "basic", "block_02_kind": "basic", "block_03_kind": "inception"},
        {"depth": 1, "block_01_kind": "other"},
    ]
    pooled = Encoder(distributions, pooled=True).rows(params)
    assert pooled.shape == (2, 4)  # depth, and the share of each kind
    assert pooled[0][1:] == pytest.approx([2 / 3, 1 / 3, 0.0])
    assert pooled[1][1:] == pytest.approx([0.0, 0.0, 1.0])
    assert Encoder(distributions, pooled=False).rows(params).shape == (2, 1 + 9 + 3)


def test_no_parameters_are_no_columns() -> None:
    assert Encoder({}, pooled=True).rows([{}, {}]).shape == (2, 0)


def test_the_space_arch_can_be_drawn_and_encoded() -> None:
    space = load_space("arch")
    draws = []
    for seed in range(20):
        draw = Draw(random.Random(seed))
        config = space.draw(draw)
        assert space.draw(FixedTrial(draw.params)) == config
        draws.append(draw)
    union = {name: one for draw in draws for name, one in draw.distributions.items()}
    rows = Encoder(union, pooled=True).rows([draw.params for draw in draws])
    assert rows.shape[0] == 20
    assert rows.shape[1] < 70
    assert np.nanmin(rows) >= 0.0
    assert np.nanmax(rows) <= 1.0


def test_a_row_is_the_same_whatever_is_encoded_with_it() -> None:
    """To the last bit: a resumed search encodes in other company than the unbroken one."""
    generator = random.Random(0)
    draws = [Draw(generator) for _ in range(60)]
    distributions: dict[str, Any] = {}
    for draw in draws:
        load_space("arch").draw(draw)
        merge(distributions, [draw.distributions])
    encoder = Encoder(distributions, pooled=True)
    together = encoder.rows([draw.params for draw in draws])
    alone = np.vstack([encoder.rows([draw.params]) for draw in draws])
    assert np.array_equal(together, alone, equal_nan=True)


def test_what_is_absent_does_not_count_where_a_range_has_one_value() -> None:
    one = FloatDistribution(1.0, 1.0)
    encoder = Encoder({"rate_1": one, "rate_2": one, "alone": one}, pooled=True)
    rows = encoder.rows([{"rate_1": 1.0, "alone": 1.0}, {}])
    assert np.array_equal(rows, [[0.5, 0.5], [np.nan, np.nan]], equal_nan=True)
    assert np.array_equal(rows[1:], encoder.rows([{}]), equal_nan=True)


def test_optuna_takes_what_was_drawn() -> None:
    draw = Draw(random.Random(5))
    draw_all(draw)
    study = optuna.create_study()
    study.add_trial(optuna.create_trial(params=draw.params, distributions=draw.distributions, value=0.0))
    assert study.trials[0].params == draw.params


@pytest.mark.parametrize("choices", [(0, 1), (False, True), (0.0, 1.0), (1, True), (1.0, 2), (1, 2.0)])
def test_equal_choices_of_other_types_are_others(choices: tuple[Any, ...]) -> None:
    for other in ((0, 1), (False, True), (0.0, 1.0), (True, 1), (1, 2)):  # asked for before
        Draw(random.Random(0)).suggest_categorical("x", other)
    draw = Draw(random.Random(0))
    value = draw.suggest_categorical("x", choices)
    (distribution,) = draw.distributions.values()
    assert isinstance(distribution, CategoricalDistribution)
    assert [type(one) for one in distribution.choices] == [type(one) for one in choices]
    assert type(value) in [type(one) for one in choices]


@pytest.mark.parametrize(
    ("known", "value", "said"),
    [
        (CategoricalDistribution((8, 16)), 32, "'x' the choices (8, 16) in one configuration and the value 32 in"),
        (CategoricalDistribution((8, 16)), "wide", "'x' the choices (8, 16) in one configuration and the value 'wide'"),
        (CategoricalDistribution(("a", "b", "c")), "d", "the choices ('a', 'b', 'c') in one configuration and the val"),
        (CategoricalDistribution(("a", "b")), None, "the choices ('a', 'b') in one configuration and the value None"),
        (FloatDistribution(0.0, 1.0), "none", "'x' a range of numbers in one configuration and the value 'none' in"),
    ],
)
def test_a_value_that_is_no_choice_is_named(known: Any, value: Any, said: str) -> None:
    with pytest.raises(InputError) as refused:
        Encoder({"x": known}, pooled=False).rows([{"x": value}, {}])
    assert said in str(refused.value)
    assert "a name must always come with the same choices" in str(refused.value)


def test_choices_that_change_are_named_with_both_lists() -> None:
    one, other = CategoricalDistribution((8, 16)), CategoricalDistribution((8, 16, 32))
    require_same_kind("x", one, CategoricalDistribution((8, 16)))
    require_same_kind("x", FloatDistribution(0.0, 1.0), FloatDistribution(0.0, 2.0))
    with pytest.raises(InputError, match=r"'x' the choices \(8, 16\) .* and the choices \(8, 16, 32\) in another"):
        require_same_kind("x", one, other)
    with pytest.raises(InputError, match=r"'x' the choices \(8, 16\) .* and a range of numbers in another"):
        require_same_kind("x", one, FloatDistribution(0.0, 1.0))
