"""Trials given by hand: their parameters, checked against the space and completed with drawn ones.

Values are read as text and turned into what the space asks for, so that `1e-3` is a number and `none` a word.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import random
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tunelab.config import TrialConfig, config_id, derive_seed
from tunelab.data.cache import DataInfo
from tunelab.errors import InputError, RefusedError
from tunelab.space import SearchSpace, draw_config
from tunelab.tuning.draws import Draw
from tunelab.tuning.grid_files import WORDS, Entry, Grid, find_grid, word
from tunelab.tuning.options import GridRequest, SearchOptions
from tunelab.tuning.preflight import make_check, make_source

Choice = TypeVar("Choice", bound="bool | int | float | str | None")
ORIGIN = "grid"
_ATTEMPTS = 300  # to draw the rest of an entry so that all its names are asked for and the network is within limits
_TOGETHER = 2000  # questions to the space to find a draw that suits all entries: 1.5 s of `arch` if none does


def complete(
    grid: Grid,
    space: SearchSpace,
    check: Callable[[TrialConfig], object],
    seed: int,
    tell: Callable[[str], object] | None = None,
) -> list[dict[str, Any]]:
    """The parameters of each trial of a grid; those that it leaves out are the same for all where that works.

    They are drawn, or of a space's own grid those of a baseline, the first that suits all entries.

    Args:
        grid: from `find_grid`.
        space: what asks for the parameters.
        check: refuses what cannot work.
        seed: of what is drawn.
        tell: is told where what is left out is not the same for all.

    Raises:
        InputError: a name is unknown, a value is not allowed, a network is refused, or an entry is there twice.
    """
    asked = [_Asked(grid, place, space, check, seed) for place in range(len(grid.entries))]
    for name in grid.entries[0] if grid.is_product else ():
        if all(name not in one.wanted for one in asked):
            raise InputError(f"{grid.name}: {_unknown(name, space, {})}")
    drawn = _as_a_baseline(asked, grid) or _draw_together(asked)
    if drawn is None:
        drawn = [one.draw_alone() for one in asked]
        if tell is not None:
            tell(f"no draw of what {grid.name} leaves out suits all its entries; it differs between trials")
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    for place, (config, params) in enumerate(drawn, start=1):
        first, _ = found.setdefault(config_id(config), (place, params))
        if first != place and not grid.is_product:
            raise InputError(
                f"{grid.name}, entry {place} is the same configuration as entry {first}; --repeat trains each "
                "several times"
            )
    return [params for _, params in found.values()]


def note(text: str) -> None:
    """Says on standard error what is worth knowing of a grid."""
    print(f"note: {text}", file=sys.stderr)


def by_hand(
    request: GridRequest, space: SearchSpace, options: SearchOptions, info: DataInfo, *, show_progress: bool = True
) -> tuple[SearchOptions, list[dict[str, Any]]]:
    """The options with as many trials as there are to be, and the trials of a new study as entries of its `first`.

    With `show_progress` it says on standard error where trials differ in more than in what the grid says.

    Raises:
        InputError: the grid cannot be used, or fewer trials are asked for than it has.
    """
    tell = note if show_progress else None
    grid = find_grid(request.source, space)
    configurations = complete(grid, space, make_check(options, info), options.seed, tell)
    given = [(ORIGIN, params) for params in configurations]
    opening = make_source(space, options, info, options.seed, None, first=given).opening()
    needed = sum(origin in ("baseline", ORIGIN) for origin, _ in opening)
    if not request.alone and options.trials < needed:
        raise InputError(f"--trials {options.trials} is less than the {needed} of {grid.name} with the baseline")
    trials = max(options.trials, needed)
    return dataclasses.replace(options, trials=trials), [{"origin": ORIGIN, "params": params} for _, params in given]


class _Asked:
    """An entry put to the space again and again, with other values for what it leaves out.

    `wanted` are the names of the entry that a trial can have at once: in a product, a combination may have no use for
    some of them.
    """

    def __init__(
        self, grid: Grid, place: int, space: SearchSpace, check: Callable[[TrialConfig], object], seed: int
    ) -> None:
        self._entry = grid.entries[place]
        self._where = f"{grid.name}, entry {place + 1}"
        self._space = space
        self._check = check
        self._seed = seed
        self._problem = ""
        self.wanted: frozenset[str] = frozenset()
        known: set[str] = set()
        for attempt in range(_ATTEMPTS):
            _, params = self._ask(attempt)
            known |= params.keys()
            self.wanted = max(self.wanted, frozenset(self._entry.keys() & params.keys()), key=len)
            if len(self.wanted) == len(self._entry):
                return
        if grid.is_product:
            return
        missing = sorted(self._entry.keys() - known)
        if missing:
            raise InputError(f"{self._where}: {_unknown(missing[0], space, self._entry)}")
        raise InputError(f"{self._where}: the space {space.name!r} never asks for all of {', '.join(self._entry)}")

    def draw(self, attempt: int, rest: Entry | None = None) -> tuple[TrialConfig, dict[str, Any]] | None:
        """Configuration and parameters, those of `rest` not drawn; None if they are refused or lack what is wanted."""
        config, params = self._ask(attempt, rest)
        if not self.wanted <= params.keys():
            return None
        try:
            self._check(config)
        except RefusedError as error:
            self._problem = str(error)
            return None
        return config, params

    def draw_alone(self) -> tuple[TrialConfig, dict[str, Any]]:
        """The first that is not refused."""
        for attempt in range(_ATTEMPTS):
            drawn = self.draw(attempt)
            if drawn is not None:
                return drawn
        raise InputError(f"{self._where} is refused: {self._problem}")

    def _ask(self, attempt: int, rest: Entry | None = None) -> tuple[TrialConfig, dict[str, Any]]:
        asker = _Asker({**(rest or {}), **self._entry}, self._where, derive_seed(self._seed, "grid", attempt))
        return draw_config(self._space, asker), asker.params


def _as_a_baseline(asked: Sequence[_Asked], grid: Grid) -> list[tuple[TrialConfig, dict[str, Any]]] | None:
    """All entries with what they leave out as in the first baseline that suits them all; None if there is none."""
    for rest in grid.rests:
        drawn: list[tuple[TrialConfig, dict[str, Any]]] = []
        for one in asked:
            found = one.draw(0, rest)
            if found is None:
                break
            drawn.append(found)
        else:
            return drawn
    return None


def _draw_together(asked: Sequence[_Asked]) -> list[tuple[TrialConfig, dict[str, Any]]] | None:
    """All entries with one draw of what they leave out; None if none was found that suits them all.

    Whichever entry a draw did not suit is asked first the next time, so that most draws cost one question.

    Raises:
        InputError: an entry is refused whatever is drawn.
    """
    order, left = list(asked), max(_TOGETHER, 2 * len(asked))
    for attempt in itertools.count():
        if attempt == _ATTEMPTS:
            order[0].draw_alone()  # it may be what nothing suits
        found: dict[_Asked, tuple[TrialConfig, dict[str, Any]]] = {}
        for one in order:
            drawn = one.draw(attempt)
            left -= 1
            if drawn is None:
                order.remove(one)
                order.insert(0, one)
                break
            found[one] = drawn
        else:
            return [found[one] for one in asked]
        if left <= 0:
            break
    return None


def _unknown(name: str, space: SearchSpace, entry: Entry) -> str:
    """What to say of a name that the space does not ask for, with those that it does."""
    known: set[str] = set()
    for number in range(50):
        asker = _Asker({other: value for other, value in entry.items() if other != name}, "", number)
        draw_config(space, asker)
        known |= asker.params.keys()
    given = " with these values" if len(entry) > 1 else ""
    return f"the space {space.name!r} does not ask for {name!r}{given}; it asks for {', '.join(sorted(known))}"


class _Chance(random.Random):
    """Random numbers that depend on a seed, on a name and on how many the name had before.

    A generator of its own for each name would take ten times as long.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._seed = seed
        self._had: dict[str, int] = {}
        self.name = ""

    def random(self) -> float:
        """A number in [0, 1)."""
        self._had[self.name] = number = self._had.get(self.name, 0) + 1
        digest = hashlib.blake2b(f"{self._seed} {number} {self.name}".encode(), digest_size=7).digest()
        return (int.from_bytes(digest, "big") >> 3) / 2**53


class _Asker:
    """Answers a space with the values of an entry; the others are drawn, each from a seed of its own and its name."""

    def __init__(self, entry: Entry, where: str, seed: int) -> None:
        self.params: dict[str, Any] = {}
        self._entry = entry
        self._where = where
        self._chance = _Chance(seed)
        self._draw = Draw(self._chance)

    def suggest_categorical(self, name: str, choices: Sequence[Choice]) -> Choice:
        """The entry's value, or one of `choices`."""
        value = self._drawn(name).suggest_categorical(name, choices)
        if name in self._entry:
            given = self._entry[name]
            matching = [choice for choice in choices if _is(choice, given)]
            if not matching:
                raise self._refusal(name, "one of " + ", ".join(word(choice) for choice in choices))
            value = matching[0]
        self.params[name] = value
        return value

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """The entry's value, or an integer in [low, high]."""
        value = self._drawn(name).suggest_int(name, low, high, step=step, log=log)
        if name in self._entry:
            number = self._number(name, low, high, step, "a whole number")
            value = int(number)
        self.params[name] = value
        return value

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """The entry's value, or a number in [low, high]."""
        value = self._drawn(name).suggest_float(name, low, high, step=step, log=log)
        if name in self._entry:
            value = self._number(name, low, high, step, "a number")
        self.params[name] = value
        return value

    def _drawn(self, name: str) -> Draw:
        self._chance.name = name
        return self._draw

    def _number(self, name: str, low: float, high: float, step: float | None, kind: str) -> float:
        allowed = f"{kind} from {low:g} to {high:g}" + (f" in steps of {step:g}" if step not in (None, 1) else "")
        try:
            value = float(self._entry[name])
        except ValueError:
            raise self._refusal(name, allowed) from None
        steps = 0.0 if step is None else (value - low) / step
        if not low <= value <= high or abs(steps - round(steps)) > 1e-6:
            raise self._refusal(name, allowed)
        return value

    def _refusal(self, name: str, allowed: str) -> InputError:
        return InputError(f"{self._where}: {name} is {self._entry[name]!r}; it must be {allowed}")


def _is(choice: bool | int | float | str | None, text: str) -> bool:
    """True if a text means this choice."""
    if choice is None or isinstance(choice, bool):
        return text.lower() in WORDS[choice]
    if isinstance(choice, str):
        return text == choice
    try:
        return float(text) == choice
    except ValueError:
        return False
