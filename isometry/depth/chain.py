"""A network as a chain of layers, for networks whose order is known. Internal.

`torch.nn.Sequential`, nested as well, and the reference networks of `isometry.nn` are such chains. A module
that calls its children in an order of its own is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from isometry.errors import IsometryError, ModelError
from isometry.nn.layers import ConvolutionLayer, DenseLayer, Trunk
from isometry.nn.network import Network

Function = Callable[[Tensor], Tensor]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
# A class derived from Sequential may call its children in another order.
_CHAINING = (nn.Sequential.forward, Trunk.forward)
WEIGHTED = (nn.Linear, *CONVOLUTIONS, DenseLayer, ConvolutionLayer)


@dataclass(frozen=True)
class Step:
    """One layer: its name, its function of a tensor, and its module where it is one."""

    name: str
    function: Function
    module: nn.Module | None


def steps_of(name: str, module: nn.Module, blocks: frozenset[str]) -> Iterator[Step]:
    """The layers of a module in the order in which they act.

    Parameters
    ----------
    name : str
        Name of the module in the whole model, "" for the model itself.
    module : nn.Module
    blocks : frozenset of str
        Names of modules that are taken as one step.

    Raises
    ------
    ModelError
        When the order is not known.
    """
    if name in blocks and name:
        yield Step(name, module, None)
    elif isinstance(module, Network):
        yield from _network_steps(name, module, blocks)
    elif isinstance(module, nn.Sequential) and type(module).forward in _CHAINING:
        # Not named_children, which leaves out a module that stands in the chain a second time.
        for child_name, child in zip(module._modules, module, strict=True):
            yield from steps_of(_joined(name, child_name), child, blocks)
    elif isinstance(module, ConvolutionLayer | DenseLayer):
        if module.residual is not None:
            yield Step(name, module, None)
            return
        yield Step(name, module.pre_activation, module)
        yield from steps_of(_joined(name, "activation"), module.activation, blocks)
    elif isinstance(module, WEIGHTED) or not any(True for _ in module.children()):
        if type(module).forward is nn.Module.forward:
            raise ModelError(
                f"module {name or 'itself'!r} ({type(module).__name__}) has no forward to walk through"
            )
        yield Step(name, module, module)
    else:
        raise ModelError(
            f"can not walk {name or 'the model'!r} ({type(module).__name__}): it holds modules but is no chain whose "
            "order is known. Build it as torch.nn.Sequential"
            + (
                f", or take it as one block with blocks=({name!r},)"
                if name
                else ", or give a part of it that is one"
            )
        )


def _network_steps(name: str, network: Network, blocks: frozenset[str]) -> Iterator[Step]:
    """Stem, trunk, the steps of `Network.forward` between trunk and head, head."""
    if network.stem is not None:
        yield from steps_of(_joined(name, "stem"), network.stem, blocks)
    yield from steps_of(_joined(name, "trunk"), network.trunk, blocks)
    if network.head is None:
        return

    def between(features: Tensor) -> Tensor:
        features = features / network.feature_scale
        if features.dim() >= 3:
            features = features.mean(dim=(-2, -1)) if network.head_kind == "pool" else features.flatten(-3)
        return features

    yield Step(_joined(name, "features"), between, None)
    yield from steps_of(_joined(name, "head"), network.head, blocks)


def _joined(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


def applied(step: Step, point: Tensor) -> Tensor:
    """Output of the layer; its input is copied first, for a layer may act in place."""
    try:
        output = step.function(point.clone())
    except IsometryError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        raise ModelError(
            f"layer {step.name!r} failed on an input of shape {tuple(point.shape)}: {str(error).splitlines()[0]}. Give "
            "the input exactly as the model takes it"
        ) from error
    if not isinstance(output, Tensor):
        raise ModelError(
            f"layer {step.name!r} returns a {type(output).__name__}, and a chain is of layers that return one tensor: "
            "put the part that picks the tensor into the layer"
        )
    return output
