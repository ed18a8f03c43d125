"""Files of options, grids, templates and models: whatever they hold, a command answers or says what is wrong."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import strategies as st

if TYPE_CHECKING:
    from tests.fuzz.conftest import Fuzz, World

OPTIONS = """# what to search
trials: 16
epochs: 9
data: digits
sampler: tpe
val-fraction: 0.2
objective: [val_accuracy, params]
deadline: 8h
memory: 4GiB
no-health: true
"""
LISTED = "- {lr: 0.1, width: 4}\n- {lr: 1e-2, width: 8}\n"
PRODUCT = "lr: [0.1, 0.01]\nwidth: [4, 8]\n"
RECIPE = "lr: 0.05\noptimizer: adam\nschedule: {name: cosine, warmup: 0.1}\naugment:\n  crop: 0.1\n"
PIECES = st.sampled_from(
    [
        "trials", "epochs", "data", "lr", "width", "config", "json", "seed", ": ", ":", "- ", "\n", "\n  ", "{", "}",
        "[", "]", ",", "0.1", "1e-3", "no", "~", "null", "!!python/object:os.system {}", "!!binary aGk=", "&a", "*a",
        "'", '"', "#", "|", ">", "? ", "---", "...", "%YAML 1.1", "\t", "\ufeff", "\u2028", "\x85", "é", "07:30",
        "9" * 400, "<<: *a", "0o17", "{{", "@", "`", "&a [*a]", "--trials", "-1", ".inf", ".nan", "2026-01-01", "true",
    ]
)  # fmt: skip


def spoilt_text(data: st.DataObject, fuzz: type[Fuzz], text: str) -> bytes:
    """A file that is random, or one that was right, spoilt."""
    how = data.draw(st.integers(0, 2))
    if how == 0:
        return "".join(data.draw(st.lists(PIECES, max_size=25))).encode("utf-8", "surrogatepass")
    if how == 1:
        lines = text.splitlines(keepends=True)
        at = data.draw(st.integers(0, len(lines) - 1))
        name = lines[at].partition(":")[0]
        lines[at] = f"{name}: {data.draw(PIECES)}{data.draw(PIECES)}\n"
        return "".join(lines).encode("utf-8", "surrogatepass")
    drawn: bytes = data.draw(fuzz.spoilt_bytes(text.encode()))
    return drawn


@pytest.mark.slow
@pytest.mark.parametrize("number", [180])
def test_options_and_grids(number: int, world: World, fuzz: type[Fuzz]) -> None:
    forms = [
        (OPTIONS, "o.yaml", ["search", "SPACE", "--config", "FILE", "--dry-run"]),
        (LISTED, "g.yaml", ["search", "SPACE", "--grid", "FILE", "--dry-run"]),
        (PRODUCT, "g.yml", ["search", "SPACE", "--grid", "FILE", "--dry-run"]),
        (json.dumps([{"lr": 0.1, "width": 4}]), "g.json", ["search", "SPACE", "--grid", "FILE", "--dry-run"]),
        (PRODUCT, "g.yaml", ["extend", "STUDY", "--grid", "FILE"]),
        (RECIPE, "r.yaml", ["best", "STUDY", "--retrain", "--recipe", "FILE"]),
    ]

    def case(data: st.DataObject) -> None:
        text, name, words = data.draw(st.sampled_from(forms))
        file = world.folder / name
        file.write_bytes(spoilt_text(data, fuzz, text))
        meant = {"SPACE": world.space, "FILE": file, "STUDY": world.study}
        if "STUDY" in words:
            meant["STUDY"] = world.fresh(world.study)
        world.ask(*(str(meant.get(word, word)) for word in words)).check()

    fuzz.run(number, case)


@pytest.mark.slow
def test_templates(world: World, fuzz: type[Fuzz]) -> None:
    template = json.loads((world.study / "trials" / "0000" / "experiment_template.json").read_text())

    def case(data: st.DataObject) -> None:
        file = world.folder / "t.json"
        file.write_text(fuzz.as_text(data.draw(fuzz.spoilt(template))))
        world.ask("search", str(world.space), "--grid", str(file), "--dry-run").check()

    fuzz.run(100, case)


@pytest.mark.slow
def test_descriptions_of_models_and_networks(world: World, fuzz: type[Fuzz]) -> None:
    described = json.loads((world.model / "config.json").read_text())
    image = str(world.images / "cat" / "0.png")

    def case(data: st.DataObject) -> None:
        model = world.fresh(world.model)
        changed = fuzz.as_text(data.draw(fuzz.spoilt(described)))
        (model / "config.json").write_text(changed)
        network = world.folder / "network.json"
        network.write_text(fuzz.as_text(data.draw(fuzz.spoilt(described["trial_config"]))))
        words = [["predict", str(model), image], ["describe", str(network)], ["describe", str(network), "--json"]]
        world.ask(*data.draw(st.sampled_from(words))).check()

    fuzz.run(120, case)


@pytest.mark.slow
def test_weights_of_models(world: World, fuzz: type[Fuzz]) -> None:
    content = (world.model / "model.safetensors").read_bytes()
    image = str(world.images / "cat" / "0.png")

    def case(data: st.DataObject) -> None:
        model = world.fresh(world.model)
        (model / "model.safetensors").write_bytes(data.draw(fuzz.spoilt_bytes(content)))
        world.ask("predict", str(model), image).check()

    fuzz.run(60, case)
