"""`critical_init_`: bring any model to isometry by what is seen between its layers, and never make it worse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from isometry.depth.critical_plan import Plan, is_chain, plan_of
from isometry.depth.critical_report import CriticalInit, InitialisedWeight
from isometry.depth.critical_weights import (
    LEFT,
    joined,
    left_parameters,
    network_weights,
    refuse_shared,
    weights_used,
)
from isometry.depth.flow_structure import FlowStructure
from isometry.depth.improvement import refuse_worse, undone_on_error, write
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
from isometry.nn.critical import (
    LAYER_TYPES,
    chain_weights,
    check_arguments,
    check_own_weight,
    detected_activation,
    fillable_layers,
)
from isometry.spectrum import Spectrum
from isometry.theory.activations import Activation

_PROBES, _STEPS = 16, 30


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
    leave: str | None = None,
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
    leave : str, optional
        Regular expression: modules and parameters whose whole name matches it, and all inside such modules, keep their
        values.
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
    left = left_parameters(root, leave)
    _refuse_unusable(root, left)
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
    uses = weights_used(flow)
    chain = _chain_activation(root, structure, uses, activation)
    if chain is not None:
        layers = fillable_layers(root, lambda name: joined(name, "weight") in left)
        filled, gains = chain_weights(
            layers, chain, q_star=q_star, sigma_w=sigma_w, sigma_b=sigma_b, weights=weights,
            input_mean_square=input_mean_square, generator=generator,
        )  # fmt: skip
        names = [joined(name, "weight") for name, _ in layers]
        filled = [pair for pair in filled if id(pair[0]) not in left.values()]
        done = tuple(
            InitialisedWeight(name, "layer", gain)
            for name, gain in zip(names, gains, strict=True)
            if name not in left
        )
        plan = Plan(left=dict.fromkeys((name for name in names if name in left), LEFT))
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
        for name in [name for name in plan.layers if name in left]:
            del plan.layers[name]
        for name in [name for name in plan.norms if name in left]:
            del plan.norms[name]
        plan.left.update(
            dict.fromkeys((name for name, p in root.named_parameters() if name in left and p.dim() > 1), LEFT)
        )
        refuse_shared(root, uses, plan)
        filled, done = network_weights(root, plan, uses, weights, sigma_b, generator)
    with undone_on_error(filled):
        write(filled)
        try:
            with warnings_silenced(IsometryWarning):
                # It has warned of the model and the input before.
                operator = JacobianOperator(root, x, **options)
            after = spectrum(operator, "after")
        except NonFiniteError as error:
            raise NotImprovedError(
                "critical_init_ was undone, and the weights are as they were: with the new weights the model overflows "
                f"at this input ({error})"
            ) from error
        refuse_worse(before, after, operator.zero_cause, list(plan.left))
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


def _refuse_unusable(model: nn.Module, left: Mapping[str, int]) -> None:
    for name, module in model.named_modules():
        if ".quantized" in type(module).__module__:
            raise InputError(
                f"module {name!r} ({type(module).__name__}) is quantised, and quantised weights cannot be initialised. "
                "Initialise the model before it is quantised."
            )
    for name, module in model.named_modules():
        is_layer = isinstance(module, LAYER_TYPES) and not isinstance(module, nn.modules.lazy.LazyModuleMixin)
        if is_layer and not any(own.startswith(f"{name}.") for own in left):
            check_own_weight(name or type(module).__name__, module)
    for name, parameter in model.named_parameters():
        if nn.parameter.is_lazy(parameter):
            raise InputError(f"parameter {name!r} is lazy and has no shape yet: run the model once before.")
        has_numbers = (
            parameter.is_floating_point() and not parameter.is_meta and parameter.layout == torch.strided
        )
        if has_numbers and not bool(torch.isfinite(parameter).all()):
            raise InputError(
                f"parameter {name!r} holds NaN or inf, so that nothing can be measured: load or draw the weights anew."
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
