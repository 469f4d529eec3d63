"""The table of the reference networks' settings agrees with their constructors."""

from __future__ import annotations

import inspect

import pytest

from isometry import nn
from isometry.nn.options import NETWORKS

# Arguments that no text names: tensors, objects of torch, and what a size or a data set decides.
OBJECTS = {
    "profile", "stem_strides", "image_size", "checkpoint_segments", "generator", "dtype", "device",
}  # fmt: skip
# The size of the map belongs to the input.
OF_THE_INPUT = {"size"}


def parameters(name: str) -> set[str]:
    """Names of the arguments of a network's constructor; those of a ResNet that it hands on are a VanillaCNN's."""
    found = set(inspect.signature(getattr(nn, name)).parameters) - {"options"}
    return found | (parameters("VanillaCNN") if name == "ResNet" else set())


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_setting_is_an_argument_and_the_other_way_round(kind: str) -> None:
    network = NETWORKS[kind]
    assert set(network.options) - OF_THE_INPUT == parameters(network.class_name) - OBJECTS
    assert set(network.defaults) <= set(network.options)


@pytest.mark.parametrize("kind", NETWORKS)
def test_defaults_and_choices_are_values_of_their_settings(kind: str) -> None:
    network = NETWORKS[kind]
    for name, value in network.defaults.items():
        option = network.options[name]
        assert option.read(str(value)) == value
        assert not option.choices or value in option.choices
