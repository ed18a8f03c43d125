"""Variables of the environment that change what a search does, often set long ago and forgotten."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tunelab.doctor.findings import MachineFinding, ok, warning


@dataclass(frozen=True)
class _Effect:
    """What a variable does, and for which values it is worth a warning."""

    does: str
    harms: Callable[[str], bool] = bool


def _is_on(value: str) -> bool:
    return value.strip().lower() not in ("", "0", "false", "no")


_EFFECTS: dict[str, _Effect] = {
    "NUMBA_DISABLE_JIT": _Effect("compiled kernels do not run, networks train far slower", _is_on),
    "NUMBA_DEBUG": _Effect("numba writes pages of text for each kernel", _is_on),
    "CUDA_LAUNCH_BLOCKING": _Effect("each operation on a GPU is waited for, far slower", _is_on),
    "TORCH_COMPILE_DISABLE": _Effect("best --retrain --compile compiles nothing", _is_on),
    "PYTORCH_NO_CUDA_MEMORY_CACHING": _Effect("memory of a GPU is asked for anew each time, far slower", _is_on),
    "PYTHONOPTIMIZE": _Effect("checks inside the libraries are left out", _is_on),
    "PYTHONINSPECT": _Effect("processes do not end", _is_on),
    "PYTHONHOME": _Effect("another Python's library is used"),
    "PYTHONMALLOC": _Effect("a debugging allocator makes all of Python slower", lambda value: "debug" in value),
    "GOMP_CPU_AFFINITY": _Effect("all trials are tied to the same processors"),
    "KMP_AFFINITY": _Effect("all trials may be tied to the same processors", lambda value: "none" not in value),
    "OMP_PROC_BIND": _Effect(
        "all trials are tied to the same processors", lambda value: value.strip().lower() not in ("", "false")
    ),
    "OMP_WAIT_POLICY": _Effect("waiting threads take processors away", lambda value: value.strip().lower() == "active"),
    "LD_PRELOAD": _Effect("a library is put into every process", lambda _value: False),
    "RAY_ADDRESS": _Effect("left aside: a search starts a Ray of its own", lambda _value: False),
    "RAY_TMPDIR": _Effect("left aside: a search has a folder of its own", lambda _value: False),
    "CUDA_VISIBLE_DEVICES": _Effect("only these GPUs are used", lambda _value: False),
    "TUNELAB_RUNS": _Effect("studies are there", lambda _value: False),
    "TUNELAB_CACHE": _Effect("decoded images are there", lambda _value: False),
    "NUMBA_CACHE_DIR": _Effect("compiled kernels are there", lambda _value: False),
}
_OVERRIDDEN = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")  # a search sets its own
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_LOCAL = ("127.0.0.1", "localhost")


def find_variables(environ: Mapping[str, str], settings: Mapping[str, str]) -> list[MachineFinding]:
    """The variables that matter to a search, those that harm it with a warning.

    Args:
        environ: the variables.
        settings: Ray's variables that a search sets itself.
    """
    found, harmless = [], []
    for name, effect in _EFFECTS.items():
        value = environ.get(name)
        if value is None:
            continue
        if effect.harms(value):
            found.append(warning("variable", f"{name}={value}: {effect.does}", f"unset {name}"))
        elif value:
            harmless.append(f"{name} ({effect.does})")
    known = {*settings, *_OVERRIDDEN, *_EFFECTS}
    foreign = [name for name in environ if name.startswith(("RAY_", "TUNE_")) and name not in known]
    if foreign:
        said = f"set, and may change how Ray works: {', '.join(sorted(foreign))}"
        found.append(warning("variables of Ray", said, f"unset {' '.join(sorted(foreign))}"))
    found += _proxies(environ)
    if harmless:
        found.append(ok("variables", "; ".join(harmless)))
    return found or [ok("variables", "none that matters is set")]


def _proxies(environ: Mapping[str, str]) -> list[MachineFinding]:
    """A proxy that local addresses are not exempt from; its address, which may hold a password, is not told."""
    given = [name for name in environ if name.lower() in _PROXIES and environ[name]]
    if not given:
        return []
    spared = (environ.get("no_proxy") or environ.get("NO_PROXY") or "").replace(" ", "").split(",")
    if "*" in spared or any(host in spared for host in _LOCAL):
        return [ok("proxy", f"{', '.join(given)}, not for local addresses")]
    mend = "export no_proxy=localhost,127.0.0.1 NO_PROXY=localhost,127.0.0.1"
    return [warning("proxy", f"{', '.join(given)} may come between Ray's local processes", mend)]
