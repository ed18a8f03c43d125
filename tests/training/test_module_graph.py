from __future__ import annotations

import pytest
import torch
from tensorboard.compat.proto.graph_pb2 import GraphDef
from torch import Tensor, nn

from tunelab.config import AnyArch, ArchSpec, BlockSpec, LeNetSpec, StemSpec
from tunelab.models.network import build_network
from tunelab.training.module_graph import graph_of

BLOCKS = (BlockSpec("basic", 16), BlockSpec("inception", 32, 2))
WIDE = ArchSpec(StemSpec(16, 3, True), (BLOCKS, (BlockSpec("bottleneck", 32, 2),)), dropout=0.1)


def by_name(graph: GraphDef) -> dict[str, tuple[str, list[str], list[list[int]]]]:
    """Of each node its operation, its inputs and the shapes of its outputs."""
    assert len({node.name for node in graph.node}) == len(graph.node)
    return {
        node.name: (
            node.op,
            list(node.input),
            [[dim.size for dim in shape.dim] for shape in node.attr["_output_shapes"].list.shape],
        )
        for node in graph.node
    }


def test_layers_and_what_is_between_them_are_nodes_with_shapes():
    nodes = by_name(graph_of(build_network(WIDE, 3, 10, (32, 32)), (3, 32, 32)))
    assert nodes["input"] == ("Input", [], [[1, 3, 32, 32]])
    assert nodes["stem/0_Conv2d"] == ("Conv2d", ["input"], [[1, 16, 32, 32]])
    assert nodes["stem/3_MaxPool"] == ("MaxPool", ["stem/2_ReLU"], [[1, 16, 16, 16]])
    added = nodes["branches/0_Sequential/0_ResidualBlock/residual/add"]
    assert added == (
        "add",
        ["branches/0_Sequential/0_ResidualBlock/residual/4_BatchNorm2d", "stem/3_MaxPool"],
        [[1, 16, 16, 16]],
    )
    assert nodes["branches/0_Sequential/1_InceptionBlock/module/cat"][1] == [
        f"branches/0_Sequential/1_InceptionBlock/module/{part}"
        for part in ("one", "three/3_Conv2d", "second/3_Conv2d", "pool/1_Conv2d")
    ]
    assert nodes["classifier"] == ("Linear", ["dropout"], [[1, 10]])
    assert nodes["output"] == ("Output", ["classifier"], [])


@pytest.mark.parametrize(
    ("arch", "shape"),
    [(WIDE, (3, 32, 32)), (LeNetSpec(), (1, 28, 28)), (LeNetSpec("relu", "max", "he"), (3, 32, 32))]
    + [(ArchSpec(StemSpec(16), (BLOCKS,), norm=norm), (1, 8, 8)) for norm in ("group", "layer", "none")],
)
def test_every_node_leads_to_the_output(arch: AnyArch, shape: tuple[int, int, int]):
    nodes = by_name(graph_of(build_network(arch, shape[0], 10, shape[1:]), shape))
    reached, waiting = set(), ["output"]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += nodes[name][1]
    assert reached == nodes.keys()


def test_the_network_and_the_random_state_stay_as_they_are():
    torch.manual_seed(0)
    model = build_network(WIDE, 3, 10, (32, 32)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    graph_of(model, (3, 32, 32))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Shared(nn.Module):
    """One layer used twice, and an operation in between that is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return self.layer(self.layer(flat).relu()) + flat


def test_a_layer_that_is_used_twice_is_two_nodes():
    nodes = by_name(graph_of(Shared(), (1, 2, 2)))
    assert nodes["layer_2"][1] == ["relu"]
    assert nodes["relu"][1] == ["layer"]
    assert nodes["add"][1] == ["layer_2", "view"]


class NeedsValues(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images if float(images.sum()) > 0 else -images


def test_a_network_that_needs_values_is_refused_by_torch():
    with pytest.raises(Exception, match="meta"):
        graph_of(NeedsValues(), (1, 2, 2))
