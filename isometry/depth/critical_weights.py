"""New values of the weights that a plan of `critical_init_` names, and the weights that it leaves alone. Internal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from isometry.depth.critical_plan import Plan, PlannedLayer
from isometry.depth.critical_report import InitialisedWeight
from isometry.depth.improvement import Filled
from isometry.errors import InputError
from isometry.jacobian import Dataflow
from isometry.nn import kernels as laws
from isometry.nn.critical import LAYER_TYPES, check_parameter, fill_weight

_ATTENTION_WEIGHTS = {
    "in_proj_weight": "in_proj_bias", "q_proj_weight": None, "k_proj_weight": None, "v_proj_weight": None,
}  # fmt: skip
LEFT = "kept by leave="


def left_parameters(model: nn.Module, leave: str | None) -> dict[str, int]:
    """The parameters that keep their values, each with its id."""
    if leave is None:
        return {}
    try:
        matches = re.compile(leave).fullmatch
    except re.error as error:
        raise InputError(f"leave={leave!r} is no regular expression: {error}") from error
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parts = name.split(".")
        if any(matches(".".join(parts[:length])) for length in range(1, len(parts) + 1)):
            found[name] = id(parameter)
    if not found:
        raise InputError(f"no module's or parameter's whole name matches leave={leave!r}")
    return found


def weights_used(flow: Dataflow) -> dict[str, int]:
    """Weight that is multiplied by -> in how many operations the same part of it is."""
    counts: dict[tuple[str, int], int] = {}
    for operation in flow.operations:
        for use in operation.parameters:
            counts[use.name, use.offset] = counts.get((use.name, use.offset), 0) + 1
    found: dict[str, int] = {}
    for (name, _), count in counts.items():
        found[name] = max(found.get(name, 0), count)
    return found


def _shared(model: nn.Module) -> dict[str, list[str]]:
    """First name of a parameter with several -> all of them."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {same[0]: same for same in names.values() if len(same) > 1}


def refuse_shared(model: nn.Module, uses: Mapping[str, int], plan: Plan) -> None:
    several = _shared(model)
    for name in plan.layers:
        names = several.get(name, [name])
        if not all(_is_layer(model, own) for own in names):
            # It is left alone.
            continue
        if len(names) > 1:
            raise InputError(
                f"one weight is shared by {' and '.join(names[:3])}, whose gains may differ: initialise the model "
                "before they are tied."
            )
        if uses.get(name, 1) > 1:
            raise InputError(
                f"weight {name!r} is used {uses[name]} times in one run, and shared weights have no gain of their own: "
                "give each place a layer of its own, or initialise the parts of the model that are used once."
            )


def network_weights(
    model: nn.Module,
    plan: Plan,
    uses: Mapping[str, int],
    weights: str,
    sigma_b: float | None,
    generator: torch.Generator | None,
) -> tuple[Filled, tuple[InitialisedWeight, ...]]:
    """New values of the parameters that the plan names, and what they are; the plan's ``left`` is completed."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    shared = _shared(model)
    filled: Filled = []
    done: list[InitialisedWeight] = []
    for name, layer in plan.layers.items():
        holder, _, attribute = name.rpartition(".")
        module = model.get_submodule(holder)
        why = _no_law(model, layer, shared.get(name, [name]), uses.get(name, 1))
        if why:
            plan.left.update(dict.fromkeys(shared.get(name, [name]), why))
            continue
        weight, is_layer = parameters[name], _is_layer(model, name)
        check_parameter(name, weight)
        gain = layer.gain * layer.branch_gain
        new = torch.zeros(weight.shape, dtype=torch.float64)
        # Other modules may keep the transposed matrix, and have attributes of any meaning.
        matrix, law = (new, module) if is_layer else (new.t() if layer.inputs_first else new, nn.Module())
        for block in _blocks(matrix, layer.packed) if gain > 0 else ():
            drawn = torch.empty(block.shape, dtype=torch.float64)
            fill_weight(drawn, law, gain, weights, name=holder or type(module).__name__, generator=generator)
            block.copy_(drawn)
        filled.append((weight, new))
        done.append(InitialisedWeight(name, layer.role, gain))
        bias = layer.bias or _bias_of(module, holder, attribute)
        own = parameters.get(bias)
        if own is not None:
            check_parameter(bias, own)
            sigma = (sigma_b or 0.0) * layer.branch_gain if layer.activated else 0.0
            filled.append((own, laws.normal(own.shape, generator=generator) * sigma))
    for name, gain in plan.norms.items():
        check_parameter(name, parameters[name])
        filled.append((parameters[name], torch.full(parameters[name].shape, gain, dtype=torch.float64)))
        done.append(InitialisedWeight(name, "weight of a normalisation that ends a branch", gain))
    if not done:
        raise InputError(
            "this model has no convolution and no dense layer to initialise that runs on this input."
        )
    _name_the_rest(model, plan)
    return filled, tuple(done)


def _name_the_rest(model: nn.Module, plan: Plan) -> None:
    """Complete what the plan leaves alone: what does not run on the input, and normalisations."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and name not in plan.layers:
            plan.left.setdefault(name, "it does not run, or not as a layer on what depends on the input")
    if plan.found["normalisation"]:
        plan.left["normalisations"] = "they set the size of what passes, whatever the gains of the layers"
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        plan.left["running statistics of batch-norm"] = (
            "they belong to the weights as they were: in training mode they adapt"
        )


def _is_layer(model: nn.Module, name: str) -> bool:
    """Whether a parameter is the weight of a convolution, a dense layer or a projection of attention."""
    holder, _, attribute = name.rpartition(".")
    module = model.get_submodule(holder)
    if isinstance(module, nn.MultiheadAttention):
        return attribute in _ATTENTION_WEIGHTS
    return isinstance(module, LAYER_TYPES) and attribute == "weight"


def _no_law(model: nn.Module, layer: PlannedLayer, names: Sequence[str], uses: int) -> str:
    """Why the weight with these names is left alone; empty where it is filled."""
    if all(_is_layer(model, name) for name in names):
        return ""
    module = model.get_submodule(layer.weight.rpartition(".")[0])
    if len(names) > 1:
        return f"one weight, shared by {' and '.join(names[:3])}"
    if not layer.is_matrix or isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return f"a weight of {type(module).__name__}, which critical_init_ has no law for"
    if uses > 1:
        return f"a matrix that is used {uses} times in one run"
    return "" if dict(model.named_parameters())[layer.weight].requires_grad else "a matrix that is frozen"


def _bias_of(module: nn.Module, holder: str, attribute: str) -> str:
    """The name that the bias of a layer has where the operation does not show it."""
    bias = _ATTENTION_WEIGHTS.get(attribute) if isinstance(module, nn.MultiheadAttention) else "bias"
    return joined(holder, bias) if bias else ""


def _blocks(weight: Tensor, packed: bool) -> Sequence[Tensor]:
    """The weight, or its blocks of as many rows as it has columns where several projections lie in it."""
    rows, columns = weight.shape[0], weight.shape[1]
    if weight.dim() != 2 or not packed:
        return [weight]
    if rows > columns and rows % columns == 0:
        return weight.split(columns)
    return weight.split(rows // 2) if rows % 2 == 0 else [weight]


def joined(holder: str, attribute: str) -> str:
    """The name of a parameter of a module."""
    return f"{holder}.{attribute}" if holder else attribute
