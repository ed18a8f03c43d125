"""What `study.json` must hold to be believed: what is there has the type that everything that reads it relies on.

What is missing is missing: studies of other kinds, and those of earlier versions, have less. What is unknown is passed
over. What a search goes on with is checked whole where it goes on (`tunelab.tuning.options`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pydantic_core import SchemaValidator, ValidationError, core_schema

from tunelab.errors import InputError, brief

_TEXT = core_schema.str_schema(strict=True)
_COUNT = core_schema.int_schema(strict=True, ge=0, lt=10**15)
_LARGE = core_schema.int_schema(strict=True, ge=0, lt=10**300)  # nothing is as long, or done so often
_SOME = core_schema.int_schema(strict=True, ge=1, le=1_000_000)
_NUMBER = core_schema.float_schema(allow_inf_nan=False, strict=True)
_FLAG = core_schema.bool_schema(strict=True)
_ANY = core_schema.any_schema()
_NAMES = core_schema.dict_schema(_TEXT, _ANY, strict=True)


def _fields(required: dict[str, Any] | None = None, **optional: Any) -> core_schema.TypedDictSchema:
    """Names and values, of which some must be there; those that are not named may be anything."""
    fields = {name: core_schema.typed_dict_field(kind, required=False) for name, kind in optional.items()}
    fields |= {name: core_schema.typed_dict_field(kind) for name, kind in (required or {}).items()}
    return core_schema.typed_dict_schema(fields, extra_behavior="allow", strict=True)


def _list(kind: Any) -> core_schema.ListSchema:
    return core_schema.list_schema(kind, strict=True)


def _maybe(kind: Any) -> core_schema.NullableSchema:
    return core_schema.nullable_schema(kind)


_FIRST = _fields({"origin": _TEXT, "params": _NAMES})
_CHANGE = _fields({"set_aside": _list(_COUNT), "to": _COUNT})
_DATA = _fields(
    {
        "name": _TEXT,
        "image_size": core_schema.tuple_schema([_COUNT, _COUNT]),
        "channels": _COUNT,
        "classes": _list(_TEXT),
        "counts": core_schema.dict_schema(_TEXT, _COUNT, strict=True),
        "fingerprint": _TEXT,
    }
)
_OPTIONS = _fields(
    {"trials": _COUNT, "epochs": _COUNT},
    repeat=_COUNT,
    race=_maybe(_NUMBER),
    device=_TEXT,
    data=_NAMES,
    objective=_list(_TEXT),
    warm_start=_list(_TEXT),
    sampler=_maybe(_TEXT),
    scheduler=_maybe(_TEXT),
    memory=_maybe(_LARGE),
)
_SLOTS = _fields({"concurrent": _SOME, "cpus": _SOME, "device": _TEXT}, gpus=_NUMBER)
_SPACE = _fields({"name": _TEXT, "source": _TEXT, "version": core_schema.int_schema(strict=True)})
_INFO: Final = _fields(
    {"kind": _TEXT, "created": _TEXT},
    space=_SPACE,
    options=_OPTIONS,
    data=_DATA,
    seed=_maybe(_LARGE),
    versions=core_schema.dict_schema(_TEXT, _maybe(_TEXT), strict=True),
    hardware=_fields({"processor": _maybe(_TEXT), "cpus": _COUNT, "gpus": _list(_TEXT)}),
    slots=_SLOTS,
    calibration=_fields({"slots": _SLOTS, "reason": _TEXT}),
    forecast=_maybe(_NAMES),
    first=_list(_FIRST),
    spaces=_list(_CHANGE),
    extended=_list(_NAMES),
    grid_in_full=_FLAG,
    baseline=_FLAG,
    storage=_TEXT,
)
_VALIDATOR = SchemaValidator(_INFO)


def require_info(file: Path, info: Any) -> None:
    """Passes if the content of `study.json`, as JSON values, can be what a command wrote.

    Raises:
        InputError: it cannot; the file, the name and the value are told.
    """
    if isinstance(info, dict) and info.get("kind") == "search":
        for name in ("space", "options", "data", "hardware"):
            if name not in info:
                raise InputError(f"{file}: {name} is missing, which every search has")
    try:
        _VALIDATOR.validate_python(info)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        told = brief(first["input"]) if isinstance(first["input"], (str, int, float, type(None))) else ""
        told = f" (got {told[:100]})" if told else f" (got {type(first['input']).__name__})"
        raise InputError(f"{file}: {name}: {first['msg'][:1].lower()}{first['msg'][1:]}{told}") from None
