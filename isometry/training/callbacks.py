"""Record Jacobian spectra while a network learns: in `isometry.training.loop`, in a loop of your own, or in Lightning.

    callback = IsometryCallback(x, every=100, store="run.h5")
    for step in range(1001):
        callback.on_step(model, step)      # measures at steps 0, 100, 200, ...
        ...

The same object goes into ``Trainer(callbacks=[callback])``. Neither Lightning nor TensorBoard is imported here.
"""

from __future__ import annotations

import sys
from abc import ABCMeta
from typing import Any

from isometry.training.penalty import PenaltyGradient
from isometry.training.recorder import SpectrumRecorder


class IsometryCallback(SpectrumRecorder, metaclass=ABCMeta):
    """Measures the Jacobian spectrum of a network every so many steps, into a file of spectra.

    Where the program has imported Lightning, ``IsometryCallback(...)`` makes a
    `isometry.training.lightning.LightningCallback`, which a trainer accepts. Subclasses for Lightning derive from that.

    Parameters
    ----------
    x : Tensor, or a tuple, list, dict or dataclass of tensors, optional
        One input of the network, as it takes it; with ``batched=True`` among the options several, stacked. Further
        inputs are ``args`` and ``kwargs`` among the options. Without any the first sample of the first batch given.
    every : int
        Steps between measurements; step 0 is measured.
    store : str, Path or Store, optional
        HDF5 file; a spectrum is stored as "NAME step 100". None keeps them in `spectra` only.
    part : callable, optional
        ``part(model, x)`` gives the function and the point to measure at; by default the model and x themselves.
        `trunk_part` takes the trunk of a reference network.
    name : str
        First word of the names in the file.
    resume : bool
        Use a spectrum that the file holds already for its step, as a resumed run does. Otherwise such a spectrum is an
        error, because it belongs to another run.
    writer : object with ``add_scalar``, optional
        Such as TensorBoard's ``SummaryWriter``; gets the finite numbers of `Spectrum.summary` under ``isometry/...``,
        and a histogram of log10 s where it has ``add_histogram``.
    provenance : mapping, optional
        Further plain values to record with every spectrum, beside its ``step``.
    **options
        Further arguments of `isometry.measure`, such as ``method``, ``probes``, ``steps``, ``seed``, ``batched``,
        ``args``, ``kwargs``, ``wrt``.

    Attributes
    ----------
    spectra : dict of int to Spectrum
        Spectra measured, or found in the file, by step.
    seconds : float
        Wall time spent so far on measuring, storing and logging.

    Raises
    ------
    InputError
        When `every` is not a whole number of one or more.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> callback = IsometryCallback(torch.ones(3), every=2)
    >>> model = nn.Linear(3, 3)
    >>> for step in range(4):
    ...     _ = callback.on_step(model, step)
    >>> sorted(callback.spectra)
    [0, 2]
    """

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        """A new callback; the one for Lightning where the program has imported Lightning."""
        if cls is not IsometryCallback or not {"lightning.pytorch", "pytorch_lightning"} & set(sys.modules):
            return super().__new__(cls)
        from isometry.training.lightning import LightningCallback

        IsometryCallback.register(LightningCallback)
        return LightningCallback(*arguments, **options)


class PenaltyCallback(PenaltyGradient, metaclass=ABCMeta):
    """Trains a network towards loss + weight * `isometry.isometry_penalty`.

    Parameters
    ----------
    x : Tensor, or a tuple, list, dict or dataclass of tensors
        Input at which the singular values are taken, as `isometry.isometry_penalty` takes it.
    weight : float
        Of the penalty, 0 or more.
    every : int
        Steps between gradients of the penalty, each ``every`` times as large, so that their mean is the same.
    part : callable, optional
        ``part(model, x)`` gives the function and the point of the penalty; `trunk_part` takes the trunk of a reference
        network.
    seed : int
        Of the probes; each step has probes of its own.
    **options
        Further arguments of `isometry.isometry_penalty`: ``probes``, ``spread``, ``batched``, ...

    Attributes
    ----------
    values : dict of int to float
        The penalty, without its weight, by step.

    Raises
    ------
    InputError
        When `weight` or `every` is no such number.

    Notes
    -----
    In `isometry.training.train` and Lightning the gradient is added after the backward pass of the loss and before
    gradients are clipped. In a loop of your own call ``on_gradients(model, step)`` there. The network is evaluated in
    evaluation mode and is afterwards in the mode it was in.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Linear(3, 3)
    >>> callback = PenaltyCallback(torch.ones(3), weight=0.1, probes=2)
    >>> callback.on_gradients(model, 0)
    >>> model.weight.grad is not None, sorted(callback.values)
    (True, [0])
    """

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        """A new callback; the one for Lightning where the program has imported Lightning."""
        if cls is not PenaltyCallback or not {"lightning.pytorch", "pytorch_lightning"} & set(sys.modules):
            return super().__new__(cls)
        from isometry.training.lightning import LightningPenalty

        PenaltyCallback.register(LightningPenalty)
        return LightningPenalty(*arguments, **options)
