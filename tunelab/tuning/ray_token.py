"""Whether a Ray cluster lets anybody in who reaches its ports: one question without a token, and one warning."""

from __future__ import annotations

import grpc

CLIENT = "ray://"
_OF_NODES = ("/ray.rpc.NodeInfoGcsService/CheckAlive", b"")
_OF_CLIENTS = ("/ray.rpc.RayletDriver/ClusterInfo", b"\x08\x06")
"""Questions that change nothing: is the control store alive; a ping (gcs_service.proto, ray_client.proto, Ray 2.60)."""
RISK = "whoever reaches its ports can run any program on all of its machines, as the user who started it"
MEND = (
    "`ray get-auth-token --generate` makes one, and Ray asks for it where ~/.ray/auth_token is the same on every "
    "machine and RAY_AUTH_MODE=token is set for each `ray start`"
)
_PATIENCE = 5.0  # seconds for an answer; our choice

_ASKED: set[str] = set()  # addresses that this process has warned of


def is_open(address: str) -> bool:
    """True if a cluster answers somebody without a token; False if it refuses, or does not answer in the clear.

    Args:
        address: of its control store ("HOST:PORT"), or of its server for clients ("ray://HOST:PORT").
    """
    return _answer(address) is grpc.StatusCode.OK


def asks(address: str) -> bool:
    """True if a cluster refuses somebody for want of a token; the address as for `is_open`."""
    return _answer(address) is grpc.StatusCode.UNAUTHENTICATED


def _answer(address: str) -> grpc.StatusCode:
    """What a cluster says to somebody without a token."""
    method, request = _OF_CLIENTS if address.startswith(CLIENT) else _OF_NODES
    try:
        with grpc.insecure_channel(address.removeprefix(CLIENT)) as channel:
            channel.unary_unary(method)(request, timeout=_PATIENCE)
    except grpc.RpcError as error:
        return error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
    except ValueError:  # of an address that is none
        return grpc.StatusCode.INVALID_ARGUMENT
    return grpc.StatusCode.OK


def warning(address: str) -> str:
    """What is to be said of a cluster without token authentication; "" where it has it, or was asked before."""
    if address in _ASKED or not is_open(address):
        return ""
    _ASKED.add(address)
    return f"warning: the Ray cluster at {address} asks for no token: {RISK}; {MEND}"
