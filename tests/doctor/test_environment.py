from __future__ import annotations

import pytest

from tunelab.doctor.environment import find_variables

SETTINGS = {"RAY_worker_niceness": "0"}


@pytest.mark.parametrize(
    ("environ", "verdict", "said"),
    [
        ({}, "ok", "none that matters"),
        ({"HOME": "/root"}, "ok", "none that matters"),
        ({"NUMBA_DISABLE_JIT": "1"}, "warning", "far slower"),
        ({"NUMBA_DISABLE_JIT": "0"}, "ok", "NUMBA_DISABLE_JIT"),
        ({"CUDA_LAUNCH_BLOCKING": "1"}, "warning", "waited for"),
        ({"OMP_PROC_BIND": "close"}, "warning", "same processors"),
        ({"OMP_PROC_BIND": "false"}, "ok", "OMP_PROC_BIND"),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, "ok", "a search starts a Ray of its own"),
        ({"RAY_AUTH_MODE": "token"}, "ok", "none that matters"),
        ({"RAY_worker_niceness": "15"}, "ok", "none that matters"),
        ({"RAY_BACKEND_LOG_LEVEL": "debug", "TUNE_X": "1"}, "warning", "how Ray works: RAY_BACKEND_LOG_LEVEL, TUNE_X"),
        ({"http_proxy": "http://u:secret@proxy:3128"}, "warning", "http_proxy may come between"),
        ({"HTTPS_PROXY": "http://proxy", "NO_PROXY": "localhost,127.0.0.1"}, "ok", "not for local addresses"),
        ({"ALL_PROXY": "http://proxy", "no_proxy": "*"}, "ok", "not for local addresses"),
        ({"LD_PRELOAD": "/lib/x.so"}, "ok", "a library is put into every process"),
    ],
)
def test_variables_that_change_what_happens(environ: dict[str, str], verdict: str, said: str) -> None:
    (found,) = find_variables(environ, SETTINGS)
    assert found.verdict == verdict
    assert said in found.measured
    assert (found.mend == "") == (verdict == "ok")


def test_a_proxy_is_not_told_with_its_password() -> None:
    (found,) = find_variables({"http_proxy": "http://user:secret@proxy:3128"}, SETTINGS)
    assert "secret" not in found.measured + found.mend
