"""The graph of a network as TensorBoard draws it: a node for each layer and each operation between them, with shapes.

The network is run once on torch's meta device, where tensors have shapes and no values: that costs next to nothing,
touches no weight and no statistic of a norm, and sees the layers as they are, not the fused kernels of a processor.
torch's own (`torch.utils.tensorboard`) traces, which is deprecated, and shows every constant of every operation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from tensorboard.compat.proto.attr_value_pb2 import AttrValue
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.node_def_pb2 import NodeDef
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.versions_pb2 import VersionDef
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_PRODUCER = 22  # of a GraphDef, as torch.utils.tensorboard writes it


def graph_of(model: nn.Module, image_shape: tuple[int, int, int]) -> GraphDef:
    """What `model` does with one image of shape (C, H, W), in evaluation mode; the model is not changed.

    A layer without parts is one node, in the scope of the modules that it lies in, with its settings and its number of
    weights; what happens between layers (sums, concatenations, means) is a node with the operation's name.

    Raises:
        Exception: whatever the network raises on the meta device; networks of one's own may need values.
    """
    shapes = copy.deepcopy(model).to("meta").eval()
    images = torch.empty((1, *image_shape), device="meta")
    recorder = _Recorder()
    recorder.add("input", "Input", (), images)
    for name, module in shapes.named_modules():
        leaf = not any(module.children())
        scope = _scope_of(shapes, name) or (type(model).__name__ if leaf else "")
        module.register_forward_pre_hook(recorder.entering(scope, leaf=leaf))
        module.register_forward_hook(recorder.leaving(scope, leaf=leaf))
    with torch.no_grad(), recorder:
        recorder.add("output", "Output", shapes(images), None)
    return GraphDef(node=recorder.nodes, versions=VersionDef(producer=_PRODUCER))


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes nodes of the operations that run, and of the layers that hooks tell it of."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nodes: list[NodeDef] = []
        self._made_by: dict[int, str] = {}
        self._kept: list[torch.Tensor] = []  # so that no two tensors have one id
        self._used: dict[str, int] = {}
        self._scopes: list[str] = []
        self._inside = 0  # a layer, whose operations are its own matter

    def add(self, name: str, kind: str, inputs: Any, output: Any, settings: Mapping[str, str] | None = None) -> None:
        """A node that makes `output`, a tensor or several, of the tensors in `inputs`."""
        times = self._used[name] = self._used.get(name, 0) + 1
        name = name if times == 1 else f"{name}_{times}"
        made = [tensor for tensor in tree_leaves(output) if isinstance(tensor, torch.Tensor)]
        sources = dict.fromkeys(self._made_by[id(one)] for one in tree_leaves(inputs) if id(one) in self._made_by)
        node = NodeDef(name=name, op=kind, input=sources)
        if made:
            node.attr["_output_shapes"].list.shape.extend(_shape(tensor) for tensor in made)
        for key, value in (settings or {}).items():
            node.attr[key].CopyFrom(AttrValue(s=value.encode()))
        self.nodes.append(node)
        self._kept += made
        self._made_by.update({id(tensor): name for tensor in made})

    def entering(self, scope: str, *, leaf: bool) -> Callable[..., None]:
        """The hook of a module that is about to run."""

        def hook(*_given: Any) -> None:
            self._scopes.append(scope)
            self._inside += leaf

        return hook

    def leaving(self, scope: str, *, leaf: bool) -> Callable[..., None]:
        """The hook of a module that has run. What it changed in place is here still known as its input."""

        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._scopes.pop()
            self._inside -= leaf
            if leaf and not self._inside:
                self.add(scope, type(module).__name__, inputs, output, _settings(module))

        return hook

    def __torch_dispatch__(
        self, func: Any, types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        kind = func.overloadpacket.__name__.strip("_")
        if not self._inside:
            scope = self._scopes[-1] if self._scopes else ""
            self.add(f"{scope}/{kind}".lstrip("/"), kind, [args, kwargs], output)
        return output


def _scope_of(model: nn.Module, name: str) -> str:
    """The place of a module: the parts of its name, those that are numbers with what they are, as `stem/0_Conv2d`."""
    parts, module = [], model
    for part in name.split(".") if name else []:
        module = module.get_submodule(part)
        parts.append(f"{part}_{type(module).__name__}" if part.isdecimal() else part)
    return "/".join(parts)


def _shape(tensor: torch.Tensor) -> TensorShapeProto:
    return TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in tensor.shape])


def _settings(module: nn.Module) -> dict[str, str]:
    """What a layer says of itself, and how many weights it has."""
    weights = sum(parameter.numel() for parameter in module.parameters())
    said = {"settings": module.extra_repr()} if module.extra_repr() else {}
    return {**said, **({"weights": f"{weights:,}"} if weights else {})}
