"""The page of a report: one HTML file that needs nothing else, from plain data. Every text in it is escaped."""

from __future__ import annotations

import base64
import csv
import io
import struct
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from .page_style import STYLE_SHEET

MOST_ROWS = 60
"""So many rows of a plot's data are in the page as a table; the CSV has all of them (our choice)."""
_LEAST = 600  # pixels: on a phone a wider picture is not made narrower than this, but moved sideways; our choice
_RANKING = {
    "rank": "rank", "trial": "trial", "score": "val acc", "expected": "expected", "interval": "95% interval",
    "runs": "runs", "tie": "tie", "epochs": "epochs", "params": "weights", "mflops": "Mflops", "seconds": "seconds",
    "what": "what",
}  # fmt: skip
_CLASSES = {"what": "long", "for example": "long", "what to do": "long", "interval": "short"} | dict.fromkeys(
    ("score", "expected", "params", "mflops", "seconds"), "number"
)
"""How columns of texts are set; those of numbers are found."""


def build(content: Mapping[str, Any]) -> str:
    """The page as HTML. `content` is what `report.gather` gives."""
    figures = content["figures"]
    groups = {"search": "The search", "retrain": "The winner in full"}
    sections = [
        _section("winner", "The winner", _winner(content)),
        _section("advice", "Recommendations", _advice(content["recommendations"])),
        _section("ranking", "Ranking", _ranking(content["ranking"], content["ranked"])),
        _section("health", "What is wrong with trials", _health(content["health"])),
    ]
    for group, title in groups.items():
        mine = [_figure(figure) for figure in figures if figure["group"] == group]
        if group == "retrain" and content["retrainings"]:
            mine.insert(0, table("Retrainings, the newest first", content["retrainings"]))
        if mine:
            sections.append(_section(group, title, "\n".join(mine)))
    if content["left_out"]:
        sections.append(_section("left-out", "Left out", _left_out(content["left_out"])))
    sections.append(_section("about", "How it was made", _terms(content["about"])))
    links = [part.partition('<section id="')[2].partition('"')[0] for part in sections]
    titles = [part.partition("<h2")[2].partition(">")[2].partition("</h2>")[0] for part in sections]
    items = "".join(f'<li><a href="#{link}">{title}</a></li>' for link, title in zip(links, titles, strict=True))
    name = escape(content["study"])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<title>{name}: tunelab report</title>\n<link rel="icon" href="data:,">\n<style>{STYLE_SHEET}</style>\n'
        "</head>\n"
        '<body>\n<a class="skip" href="#content">Skip to the content</a>\n'
        f'<header>\n<h1 dir="auto">{name}</h1>\n<p class="lead">{escape(content["sentence"])}</p>\n</header>\n'
        f'<nav aria-label="Sections">\n<ul>{items}</ul>\n</nav>\n'
        f'<main id="content" tabindex="-1">\n{"".join(sections)}</main>\n'
        f'<footer>\n<p class="faint">{escape(content["made"])}</p>\n</footer>\n</body>\n</html>\n'
    )


def table(caption: str, rows: Sequence[Mapping[str, Any]], headers: Mapping[str, str] | None = None) -> str:
    """A table with a caption and a heading over each column; the columns are the first row's keys, or `headers`.

    The first cell of a row is its heading.
    """
    if not rows:
        return ""
    names = headers or {name: name.replace("_", " ") for row in rows for name in row}
    numeric = {name for name in names if all(_is_number(row.get(name)) for row in rows)}
    label = escape(caption, quote=True)
    head = "".join(f'<th scope="col"{_class(name, numeric)}>{escape(title)}</th>' for name, title in names.items())
    body = []
    for row in rows:
        cells = []
        for place, name in enumerate(names):
            tag, scope = ("th", ' scope="row"') if place == 0 else ("td", "")
            cells.append(f'<{tag}{scope}{_class(name, numeric)} dir="auto">{escape(cell(row.get(name)))}</{tag}>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">'
        f"<table><caption>{escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>\n"
    )


def cell(value: Any) -> str:
    """A value for a person."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(cell, value)) if isinstance(value, (list, tuple)) else str(value)


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV with a heading."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _class(name: str, numeric: Iterable[str]) -> str:
    return ' class="number"' if name in numeric else f' class="{_CLASSES[name]}"' if name in _CLASSES else ""


def _section(name: str, title: str, inside: str) -> str:
    heading = f'<h2 id="{name}-title">{title}</h2>'
    return f'<section id="{name}" aria-labelledby="{name}-title">\n{heading}\n{inside}</section>\n'


def _winner(content: Mapping[str, Any]) -> str:
    first = next(iter(content["ranking"]), None)
    if first is None:
        return "<p>No trial has run its full length yet.</p>\n"
    parts = [
        f'<p class="big">{_percent(first["expected"])} expected</p>',
        f"<p>{_interval(first)} is its 95% interval. Trial {first['trial']} had {_percent(first['score'])} on "
        f"validation images after {first['epochs']} epochs, the mean of {_counted(first['runs'], 'run')}; what is "
        "expected is the same without the luck of having been chosen.</p>",
        *([_new_data(content["new_data"])] if content["new_data"] else []),
        f"<p>{escape(content['ties'][:1].upper() + content['ties'][1:])}.</p>",
        *[_in_full(row) for row in content["retrainings"][:1]],
        f'<p class="faint">{escape(first["what"])}</p>',
    ]
    rows = [{"parameter": name, "value": value} for name, value in content["winner"].items()]
    if rows:
        parts.append(
            f"<details><summary>All its parameters</summary>{table('Parameters of the winner', rows)}</details>"
        )
    return "\n".join(parts) + "\n"


def _new_data(row: Mapping[str, Any]) -> str:
    """What the winner is expected to have on images that nobody has looked at."""
    return (
        f"<p>On new images of the same kind {_interval(row)} is expected: the best of {row['configurations']} "
        f"configurations was {100 * row['optimism']:.1f} percentage points lucky, and {row['val_images']} validation "
        "images leave some chance.</p>"
    )


def _in_full(row: Mapping[str, Any]) -> str:
    """What the newest retraining came to."""
    return (
        f"<p>Trained in full, {cell(row['epochs'])} epochs with {_counted(row['seeds'], 'seed')}, trial "
        f"{cell(row['trial'])} has {escape(row['test accuracy'])} on test images.</p>"
    )


def _advice(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "<p>Nothing in the record asks for a change.</p>\n"
    items = "".join(f"<li>{_code(row['text'])}</li>" for row in rows)
    return f'<ul class="advice">{items}</ul>\n'


def _code(text: str) -> str:
    """A text with what stands between backticks as code."""
    pieces = escape(text).split("`")
    if len(pieces) % 2 == 0:  # one backtick too many: it belongs to a name
        return "`".join(pieces)
    return "".join(f"<code>{piece}</code>" if place % 2 else piece for place, piece in enumerate(pieces))


def _ranking(rows: Sequence[Mapping[str, Any]], ranked: int) -> str:
    if not rows:
        return "<p>No trial has run its full length yet.</p>\n"
    shown = [
        {
            **row,
            "score": _percent(row["score"]),
            "expected": _percent(row["expected"]),
            "interval": _interval(row),
            "tie": "=" if row["tied"] else "",
            "params": None if row["params"] is None else f"{row['params']:,}",
            "mflops": None if row["mflops"] is None else f"{row['mflops']:.1f}",
            "seconds": round(row["seconds"]),
            "runs": f"{row['runs']}" + (f", {len(row['lost'])} lost" if row["lost"] else ""),
        }
        for row in rows
    ]
    caption = f"The {len(rows)} best of {ranked} configurations of full length; = cannot be told apart from the first"
    return table(caption, shown, _RANKING)


def _health(rows: Sequence[Mapping[str, Any]]) -> str:
    """The findings of all trials."""
    if not rows:
        return "<p>Nothing was found to be wrong with any trial.</p>\n"
    return table("What was found, the most frequent first", rows)


def _figure(figure: Mapping[str, Any]) -> str:
    """A picture with its words, and its data as a table and as CSV."""
    wide, high = struct.unpack(">II", figure["png"][16:24])
    size = f'width="{wide}" height="{high}" style="max-width:{wide}px;min-width:{min(wide, _LEAST)}px"'
    title, words = escape(figure["title"]), escape(figure["words"], quote=True)
    legend = "".join(
        f'<li>{escape(number)} is <span dir="auto">{escape(text)}</span></li>'
        for text, number in figure["legend"].items()
    )
    rows, name = figure["rows"], figure["name"]
    caption = f"{figure['title']}: " + (
        f"the first {MOST_ROWS} of {len(rows):,} rows" if len(rows) > MOST_ROWS else f"all {len(rows)} rows"
    )
    csv = _uri("text/csv;charset=utf-8", figure["csv"].encode(errors="backslashreplace"))
    return (
        f'<h3 id="{name}">{title}</h3>\n<figure>\n'
        f'<div class="scroll" role="region" aria-label="{title}, picture" tabindex="0">'
        f'<img src="{_uri("image/png", figure["png"])}" {size} alt="{words}"></div>\n'
        f'<figcaption>{escape(figure["words"])} <span class="faint">{escape(figure["caption"])}</span>'
        + (f"<ul>{legend}</ul>" if legend else "")
        + f"</figcaption>\n<details><summary>The data: {title}</summary>{table(caption, rows[:MOST_ROWS])}"
        f'<p><a download="{name}.csv" href="{csv}">'
        f"{name}.csv, {len(rows):,} rows</a></p></details>\n</figure>\n"
    )


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _left_out(reasons: Mapping[str, str]) -> str:
    """Why plots are missing, those with one reason together."""
    groups: dict[str, list[str]] = {}
    for title, reason in reasons.items():
        groups.setdefault(reason, []).append(title)
    items = "".join(f"<li>{escape('; '.join(titles))}: {_code(reason)}</li>" for reason, titles in groups.items())
    return f"<ul>{items}</ul>\n"


def _terms(rows: Mapping[str, Any]) -> str:
    shown = [{"setting": name, "value": cell(value)} for name, value in rows.items()]
    return table("Settings and versions", shown)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _percent(score: float) -> str:
    return f"{100 * score:.1f}%"


def _interval(row: Mapping[str, Any]) -> str:
    """No accuracy lies outside 0 to 100%."""
    return f"{100 * max(0.0, row['low']):.1f} to {100 * min(1.0, row['high']):.1f}%"
