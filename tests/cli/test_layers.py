"""`isometry layers`: the names that --source and --target take."""

from __future__ import annotations


def test_layers_in_the_order_they_run_with_shapes(isometry, models) -> None:
    found = isometry("layers", f"{models}:cnn", "--input", "3x6x6", "--json").json
    assert found["input_shape"] == [1, 3, 6, 6]
    rows = [(row["name"], row["type"], row["input_shape"], row["output_shape"]) for row in found["layers"]]
    assert rows == [
        ("0", "Conv2d", [1, 3, 6, 6], [1, 4, 4, 4]),
        ("1", "Tanh", [1, 4, 4, 4], [1, 4, 4, 4]),
        ("2", "Flatten", [1, 4, 4, 4], [1, 64]),
        ("3", "Linear", [1, 64], [1, 5]),
    ]
    assert found["layers"][0]["parameters"] == 3 * 4 * 9 + 4


def test_every_listed_name_can_be_measured(isometry, models) -> None:
    names = [
        row["name"]
        for row in isometry("layers", f"{models}:cnn", "--input", "3x6x6", "--json").json["layers"]
    ]
    for name in names:
        assert isometry("measure", f"{models}:cnn", "--input", "3x6x6", "--target", name).code == 0


def test_the_table_has_one_line_for_each_layer(isometry) -> None:
    done = isometry("layers", "mlp:depth=3,width=5,sigma_w=1")
    lines = [line.split() for line in done.out.splitlines()]
    assert lines[0] == ["name", "type", "input", "output", "parameters"]
    assert ["trunk.2", "DenseLayer", "1x5", "1x5", "30"] in lines


def test_a_model_that_raises_is_named(isometry, models) -> None:
    done = isometry("layers", f"{models}:Raises", "--input", "4")
    assert done.code == 1
    assert "the model raised ValueError" in done.err
