from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc, ray_client_pb2, ray_client_pb2_grpc

from tunelab.tuning import ray_token

MakeServer = Callable[[bool], str]


class ControlStore(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):
    """Answers as a cluster's control store does (seen with Ray 2.60)."""

    def __init__(self, asks: bool) -> None:
        self.asks = asks

    def CheckAlive(self, request: object, context: grpc.ServicerContext) -> object:
        if self.asks and not dict(context.invocation_metadata()).get("authorization"):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken: Authentication token is missing")
        return gcs_service_pb2.CheckAliveReply()


class ClientServer(ray_client_pb2_grpc.RayletDriverServicer):
    """Answers as a cluster's server for clients does."""

    def __init__(self, asks: bool) -> None:
        self.asks = asks

    def ClusterInfo(self, request: object, context: grpc.ServicerContext) -> object:
        assert request.type == ray_client_pb2.ClusterInfoType.PING  # type: ignore[attr-defined]
        if self.asks:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Invalid or missing authentication token")
        return ray_client_pb2.ClusterInfoResponse(json="{}")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeServer]:
    """Makes what answers as a cluster with or without a token; its address."""
    monkeypatch.setattr(ray_token, "_ASKED", set())
    monkeypatch.setattr(ray_token, "_PATIENCE", 60.0)
    servers = []

    def make(asks: bool) -> str:
        server = grpc.server(ThreadPoolExecutor(2))
        gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(ControlStore(asks), server)
        ray_client_pb2_grpc.add_RayletDriverServicer_to_server(ClientServer(asks), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield make
    for server in servers:
        server.stop(None).wait()


@pytest.mark.parametrize("before", ["", "ray://"])
def test_who_asks_for_a_token_is_not_open(cluster: MakeServer, before: str) -> None:
    assert ray_token.is_open(before + cluster(False))
    assert not ray_token.is_open(before + cluster(True))
    assert ray_token.asks(before + cluster(True))
    assert not ray_token.asks(before + cluster(False))
    assert ray_token.warning(before + cluster(True)) == ""


def test_one_line_names_the_risk_and_the_mend_once(cluster: MakeServer) -> None:
    address = cluster(False)
    said = ray_token.warning(address)
    assert ray_token.warning(address) == ""
    assert said.startswith(
        f"warning: the Ray cluster at {address} asks for no token: whoever reaches its ports can run"
    )
    assert "\n" not in said
    assert "RAY_AUTH_MODE=token" in said


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere", ""])
def test_where_nobody_answers_nothing_is_said(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(ray_token, "_PATIENCE", 0.5)
    assert not ray_token.asks(address)
    assert ray_token.warning(address) == ""
