"""`critical_init_`: bring any model to isometry by what is seen between its layers, and never make it worse."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isometry.depth.critical_plan import Plan, PlannedLayer, is_chain, plan_of
from isometry.depth.flow_structure import FlowStructure
from isometry.errors import InputError, IsometryError, IsometryWarning, NonFiniteError, NotImprovedError
from isometry.jacobian import (
    Dataflow,
    JacobianOperator,
    Output,
    Wrt,
    keeps_torch_state,
    uncompiled,
    warnings_silenced,
)
from isometry.measurement import measure
from isometry.nn import kernels as laws
from isometry.nn.critical import (
    LAYER_TYPES,
    chain_weights,
    check_arguments,
    check_own_weight,
    check_parameter,
    detected_activation,
    fill_weight,
    fillable_layers,
)
from isometry.spectrum import Spectrum
from isometry.spectrum.formatting import number_text, plain
from isometry.theory.activations import Activation

_ATTENTION_WEIGHTS = {
    "in_proj_weight": "in_proj_bias", "q_proj_weight": None, "k_proj_weight": None, "v_proj_weight": None,
}  # fmt: skip
_PROBES, _STEPS = 16, 30

Filled = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class InitialisedWeight:
    """What one weight was filled with.

    Parameters
    ----------
    name : str
        Of the parameter.
    role : str
        What it is in the network: "layer", "last of a branch", "query, key, value", ...
    gain : float
        By which it multiplies the root mean square of what it is given: the norm of its rows, 0 where it was set to
        zero; for a normalisation's weight its entries.
    """

    name: str
    role: str
    gain: float


@dataclass(frozen=True)
class CriticalInit:
    """What `critical_init_` saw and did.

    Parameters
    ----------
    model : torch.nn.Module
        The model, initialised.
    kind : {"chain", "network"}
        Whether its run is one layer after another.
    found : dict
        What stands between the layers -> how often: "residual sum", "attention", "normalisation", ...
    weights : tuple of InitialisedWeight
        In the order of the run.
    left_alone : dict
        Name of a module or parameter -> why it was left alone, or what is not handled there.
    before, after : Spectrum
        Of the Jacobian at the input, with the same probes. A network that overflows before is measured in float64.
    """

    model: nn.Module
    kind: str
    found: Mapping[str, int]
    weights: tuple[InitialisedWeight, ...]
    left_alone: Mapping[str, str]
    before: Spectrum
    after: Spectrum

    def __str__(self) -> str:
        seen = ", ".join(f"{count} x {what}" for what, count in self.found.items())
        lines = [f"critical_init_: a {self.kind}{f' with {seen}' if seen else ''}"]
        roles: dict[tuple[str, str], list[str]] = {}
        for weight in self.weights:
            roles.setdefault((weight.role, number_text(weight.gain)), []).append(weight.name)
        for (role, gain), names in roles.items():
            lines.append(f"  {role}, gain {gain}: {_listed(names)}")
        reasons: dict[str, list[str]] = {}
        for name, why in self.left_alone.items():
            reasons.setdefault(why, []).append(name)
        lines += [f"  left alone: {_listed(names)}: {why}" for why, names in reasons.items()]
        for label, one in (("before", self.before), ("after", self.after)):
            lines.append(
                f"  {label:<6}  mean s^2 {number_text(one.mean_square)} +- {number_text(one.mean_square_stderr)}, "
                f"s_max {number_text(one.s_max)}, {one.spread_bounds()[0]:.0%} within a factor 2 of the scale"
            )
        return plain("\n".join(lines), keep="\n")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f", ... ({len(names)})" if len(names) > 3 else "")


@keeps_torch_state
def critical_init_(
    model: nn.Module,
    x: Any = None,
    activation: str | Activation | None = None,
    *,
    residual: str = "scaled",
    branch_gain: float = 0.25,
    q_star: float | None = None,
    sigma_w: float | None = None,
    sigma_b: float | None = None,
    weights: str = "delta_orthogonal",
    input_mean_square: float | None = None,
    generator: torch.Generator | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    wrt: Wrt = None,
    batched: bool = False,
    source: str | None = None,
    target: str | None = None,
    output: Output = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    probes: int = _PROBES,
    steps: int = _STEPS,
    seed: int = 0,
) -> CriticalInit:
    """Fill the weights of any model so that signals and gradients keep their size, by what one run of it shows.

    Layers one after another are filled as `isometry.nn.init.critical_init_` fills them. Elsewhere each layer gets the
    gain that makes up for the activation behind it, the last layer of each residual branch the gain of the branch
    beside, and queries, keys and values of attention the gain 1. Biases are zero. The Jacobian is measured before and
    after.

    Parameters
    ----------
    model : torch.nn.Module
        In evaluation mode. Filled are ``nn.Linear``, ``nn.Conv*``, ``nn.ConvTranspose*``, ``nn.MultiheadAttention``,
        the layers of `isometry.nn`, and matrices of other modules that are used once, where they run on the input; all
        else is left alone, and the report names it.
    x : Tensor, or a tuple, list, dict or dataclass of tensors
        One input, as `isometry.measure` takes it. Its values decide the comparison, and no weight.
    activation : str or Activation, optional
        phi of every activation; None reads each off the run.
    residual : {"scaled", "zero"}
        Branches of x + f(x) get the gain ``branch_gain`` / sqrt(D), D being the number of sums one after another (a
        factor that the model multiplies them by already counts), or their last layers are zero. A last layer with a
        ReLU behind would never train from zero, and is scaled. Where a branch ends in a normalisation, its weight gets
        that gain.
    branch_gain : float
        c: D branches of chi 1 multiply the mean square of J by about exp(c^2), 1.06 for the default.
    q_star : float, optional
        Of a chain only: a network with sums has no stationary variance.
    sigma_w, sigma_b : float, optional
        Of a chain as for `isometry.nn.init.critical_init_`; else the gain of layers before an activation and the
        standard deviation of their biases.
    weights : {"delta_orthogonal", "orthogonal_conv", "gaussian", "mirrored"}
        Law of the weights; "mirrored" of chains only.
    input_mean_square : float, optional
        Mean square of the entries of the input, which the first layers then bring to q* (of a chain) or to 1.
    generator : torch.Generator, optional
        Source of randomness, else the global CPU seed of torch.
    args, kwargs, wrt, batched, source, target, output, dtype, device, probes, steps, seed :
        Of both measurements, as for `isometry.measure`. For token numbers, ``source`` names the first module behind the
        embedding; layers before it are left alone.

    Returns
    -------
    CriticalInit
        What was seen, the gain of each weight, what was left alone and why, the spectra before and after.

    Raises
    ------
    InputError
        Where the model or the input cannot be used: frozen, shared, quantised, lazy or parametrised weights, NaN,
        numbers that are not floating-point, an activation without critical point in a chain.
    ModelError
        Where the run cannot be recorded, or the model is in training mode.
    NotImprovedError
        Where the Jacobian is zero afterwards, the logarithm of its mean square is further from 0 than before (with more
        outputs m than inputs n: from the range 0 to log m/n, as entries that keep their mean square make m/n), or the
        share of singular values within a factor of two of their scale is smaller. Differences within the errors do not
        count: three standard errors of the probes, and the chance by which N = min(m, n) values of one draw of the
        weights have another mean square (two standard errors) or share (three). With this and every other error, an
        interrupt included, the model is as it was, bit for bit.

    Notes
    -----
    The gain g of a layer before phi solves g^2 E phi'(g z)^2 = 1, z ~ N(0, 1): the point chi_1 = 1 for inputs of mean
    square 1. Behind a product v phi(h) (GLU) the next layer has 1 / sqrt(E phi^2 + E phi'^2). In attention, queries and
    keys of mean square 1 give logits of variance 1 under torch's scale 1 / sqrt(d), so that the softmax is not
    saturated.

    References
    ----------
    Zhang, Dauphin, Ma 2019 (Fixup), arXiv 1901.09321; De, Smith 2020 (SkipInit), arXiv 2002.10444; Hayou et al. 2021
    (Stable ResNet), arXiv 2010.12859; Tarnowski et al. 2019, arXiv 1809.08848; Goyal et al. 2017, arXiv 1706.02677;
    Poole et al. 2016, arXiv 1606.05340; Schoenholz et al. 2017, arXiv 1611.01232.

    Examples
    --------
    >>> class Block(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.inner = torch.nn.Linear(16, 16)
    ...     def forward(self, x):
    ...         return x + self.inner(x).relu()
    >>> model = torch.nn.Sequential(*[Block() for _ in range(16)])
    >>> report = critical_init_(model, torch.ones(16), generator=torch.Generator().manual_seed(0))
    >>> dict(report.found), report.weights[0].role, round(report.weights[0].gain, 4)
    ({'residual sum': 16}, 'last of a branch', 0.0392)
    """
    check_arguments(weights, input_mean_square)
    _check_own_arguments(model, residual, branch_gain)
    root = uncompiled(model)
    _refuse_unusable(root)
    options: dict[str, Any] = {
        "args": args, "kwargs": kwargs, "wrt": wrt, "batched": batched, "source": source, "target": target,
        "output": output, "dtype": dtype, "device": device,
    }  # fmt: skip

    def spectrum(operator: JacobianOperator, name: str) -> Spectrum:
        # A Jacobian that is zero, or has values below its floor, is told by the comparison.
        with warnings_silenced(IsometryWarning):
            return measure(
                operator,
                probes=probes,
                steps=steps,
                seed=seed,
                progress=False,
                on_interrupt="raise",
                name=name,
            )

    try:
        operator = JacobianOperator(root, x, **options)
        before = spectrum(operator, "before")
    except NonFiniteError:
        # What overflows in float32 is to be cured all the same.
        operator = _in_double_precision(root, x, options)
        before = spectrum(operator, "before")
    flow = Dataflow.of(operator)
    structure = FlowStructure(flow)
    del operator
    uses = _weights_used(flow)
    chain = _chain_activation(root, structure, uses, activation)
    if chain is not None:
        layers = fillable_layers(root)
        filled, gains = chain_weights(
            layers, chain, q_star=q_star, sigma_w=sigma_w, sigma_b=sigma_b, weights=weights,
            input_mean_square=input_mean_square, generator=generator,
        )  # fmt: skip
        names = [f"{name}.weight" for name, _ in layers]
        done = tuple(InitialisedWeight(name, "layer", gain) for name, gain in zip(names, gains, strict=True))
        plan = Plan()
    else:
        if q_star is not None or weights == "mirrored":
            what = "q_star" if q_star is not None else 'weights="mirrored"'
            raise InputError(
                f"{what} is for chains of layers with one activation, and this model has "
                f"{_between(structure)} between its layers: leave it out"
            )
        plan = plan_of(
            structure, activation=activation, sigma_w=sigma_w, residual=residual, branch_gain=branch_gain,
            input_mean_square=input_mean_square,
        )  # fmt: skip
        _refuse_shared(root, uses, plan)
        filled, done = _network_weights(root, plan, uses, weights, sigma_b, generator)
    with _undone_on_error(filled):
        _write(filled)
        with warnings_silenced(IsometryWarning):
            # It has warned of the model and the input before.
            operator = JacobianOperator(root, x, **options)
        after = spectrum(operator, "after")
        _refuse_worse(before, after, operator.zero_cause, plan)
        return CriticalInit(
            model, "network" if chain is None else "chain", dict(plan.found), done, plan.left, before, after
        )


def _in_double_precision(model: nn.Module, x: Any, options: Mapping[str, Any]) -> JacobianOperator:
    """The operator in float64, whatever precision was asked for; errors are those of the precision asked for."""
    try:
        return JacobianOperator(model, x, **{**options, "dtype": torch.float64})
    except IsometryError:
        return JacobianOperator(model, x, **options)


# ---- what cannot be initialised ----------------------------------------------------------------------------


def _check_own_arguments(model: object, residual: str, branch_gain: float) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(
            f"critical_init_ takes a torch.nn.Module, whose weights it fills; got {type(model).__name__}"
        )
    if residual not in ("scaled", "zero"):
        raise InputError(f'residual is "scaled" or "zero"; got {residual!r}')
    if not (isinstance(branch_gain, int | float) and math.isfinite(branch_gain) and branch_gain > 0):
        raise InputError(f"branch_gain is a finite number above zero; got {branch_gain!r}")


def _refuse_unusable(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if ".quantized" in type(module).__module__:
            raise InputError(
                f"module {name!r} ({type(module).__name__}) is quantised, and quantised weights cannot be initialised. "
                "Initialise the model before it is quantised."
            )
    for name, module in model.named_modules():
        if isinstance(module, LAYER_TYPES) and not isinstance(module, nn.modules.lazy.LazyModuleMixin):
            check_own_weight(name or type(module).__name__, module)
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise InputError(f"parameter {name!r} is lazy and has no shape yet: run the model once before.")
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
            raise InputError(
                f"parameter {name!r} holds NaN or inf, so that nothing can be measured: load or draw the weights anew."
            )


def _weights_used(flow: Dataflow) -> dict[str, int]:
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


def _refuse_shared(model: nn.Module, uses: Mapping[str, int], plan: Plan) -> None:
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


# ---- chains -----------------------------------------------------------------------------------------------


def _chain_activation(
    model: nn.Module, structure: FlowStructure, uses: Mapping[str, int], activation: str | Activation | None
) -> str | Activation | None:
    """The activation of a chain that is filled as one; None for any other network."""
    if not is_chain(structure) and not (activation is not None and is_chain(structure, functions=True)):
        return None
    recorded = {use.name for node in structure.layers for use in structure.operation(node).parameters}
    own = {name for name, module in model.named_modules() if isinstance(module, LAYER_TYPES)}
    prefix = {name.rpartition(".")[0] for name in recorded}
    if prefix != own or any(uses[name] > 1 for name in recorded):
        return None
    if activation is not None:
        return activation
    read = {phi for phi in structure.activation.values() if phi is not None}
    if len(read) != 1:
        return None
    try:
        return detected_activation(model)
    except InputError:
        # Called as a function in the forward pass.
        return read.pop()


def _between(structure: FlowStructure) -> str:
    names = {"sum": "sums", "product": "products", "join": "concatenations", "norm": "normalisations",
             "affine": "normalisations", "softmax": "attention", "attention": "attention"}  # fmt: skip
    found = dict.fromkeys(names[kind] for kind in structure.kind if kind in names)
    return ", ".join(found) or "several activations, or layers that do not run"


# ---- networks -----------------------------------------------------------------------------------------------


def _network_weights(
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
    return _joined(holder, bias) if bias else ""


def _blocks(weight: Tensor, packed: bool) -> Sequence[Tensor]:
    """The weight, or its blocks of as many rows as it has columns where several projections lie in it."""
    rows, columns = weight.shape[0], weight.shape[1]
    if weight.dim() != 2 or not packed:
        return [weight]
    if rows > columns and rows % columns == 0:
        return weight.split(columns)
    return weight.split(rows // 2) if rows % 2 == 0 else [weight]


def _joined(holder: str, attribute: str) -> str:
    return f"{holder}.{attribute}" if holder else attribute


# ---- writing, and undoing ---------------------------------------------------------------------------------


def _write(values: Filled) -> None:
    with torch.no_grad():
        for parameter, new in values:
            parameter.copy_(new)


@contextmanager
def _undone_on_error(filled: Filled) -> Iterator[None]:
    """Give the parameters their old bits back where anything is raised inside."""
    old = [(parameter, parameter.detach().clone()) for parameter, _ in filled]
    try:
        yield
    except BaseException:
        _restore(old)
        raise


def _restore(old: Filled) -> None:
    """Write the old values, however often an interrupt comes meanwhile."""
    while True:
        try:
            _write(old)
        except KeyboardInterrupt:
            continue
        return


def _refuse_worse(before: Spectrum, after: Spectrum, zero_cause: str, plan: Plan) -> None:
    undone = "critical_init_ was undone, and the weights are as they were"
    if not math.isfinite(after.log10_moment(1)):
        raise NotImprovedError(
            f"{undone}: the Jacobian is zero at this input with the new weights as well"
            f"{f' ({zero_cause})' if zero_cause else ''}: the network is dead here. Give another input, or look at "
            "isometry.measure_blocks for the block that is zero"
        )
    found = _worse(before, after)
    if found:
        raise NotImprovedError(
            f"{undone}: {found}. Either the model was closer to isometry before, or its inputs are not what the gains "
            "are for: mean square 1 where the model does not normalise them (try input_mean_square=). "
            "isometry.measure_blocks shows where the size changes"
            + (f". Left alone were {_listed(list(plan.left))}" if plan.left else "")
        )


def _worse(before: Spectrum, after: Spectrum) -> str:
    """What became worse, beyond the errors; empty where nothing did."""
    old, new = before.log10_moment(1), after.log10_moment(1)
    m, n = after.shape or (1, 1)
    # Layers keep the mean square of entries, and m of them for n are a mean square of m/n: from there to 1 all is kept.
    widest = math.log10(max(m / n, 1.0))
    old, new = (max(one - widest, 0.0, -one) for one in (old, new))
    if math.isfinite(old) and new - old > math.hypot(_error(before), _error(after)) + 1e-6:
        return (
            f"the mean square of its singular values went from {number_text(before.mean_square)} to "
            f"{number_text(after.mean_square)}, further from {f'1 to {m / n:.3g}' if m > n else '1'}"
        )
    (_, most), (least, _) = _share(after), _share(before)
    middle = 0.5 * (most + least)
    chance = math.sqrt(2 * max(middle * (1 - middle), 0.0) / min(after.shape or (1,)))
    if most < least - 3 * chance:
        return (
            f"the share of singular values within a factor of two of their scale went from at least {least:.0%} to at "
            f"most {most:.0%}"
        )
    return ""


def _error(spectrum: Spectrum) -> float:
    """Of log10 of the mean square: three standard errors of the probes, two of a draw of N = min(m, n) values."""
    mean = spectrum.mean_square
    if not 0 < mean < math.inf:
        return 0.0
    probes = spectrum.mean_square_stderr if math.isfinite(spectrum.mean_square_stderr) else 0.0
    chance = math.sqrt(max(spectrum.variance, 0.0) / min(spectrum.shape or (1,)))
    return math.hypot(3 * probes, 2 * chance) / mean / math.log(10)


def _share(spectrum: Spectrum) -> tuple[float, float]:
    """Limits of 95 % for the share within a factor of two of the root mean square."""
    scale = math.sqrt(spectrum.mean_square)
    if not 0 < scale < math.inf:
        return spectrum.spread_bounds()
    return spectrum.isometry_band(scale / 2, scale * 2)
