"""What users type and read: names of classes, and of networks that are shown together."""

import pytest

from bagnet_lightning.errors import UserError
from bagnet_lightning.names import class_indices, find_class, nearest, told_apart


def test_a_class_has_its_identifier_and_a_name_that_no_other_has():
    assert class_indices(["n1", "n2", "n3"], ["crane", "crane", "n1"]) == {"n1": 0, "n2": 1, "n3": 2}
    assert class_indices(["n1", "n2"], ["goldfish", "crane"]) == {"n1": 0, "n2": 1, "goldfish": 0, "crane": 1}


def test_a_class_is_found_by_identifier_and_name():
    classes, names = ["n01", "n02", "n03", "n04"], ["goldfish", "crane", "crane", "N01"]
    for asked in ("n01", "goldfish", "Goldfish"):
        assert find_class(asked, classes, names, "class") == 0
    assert find_class("N01", classes, names, "class") == 3
    with pytest.raises(UserError, match=r"class: there is no class 'goldfisch'; nearest: goldfish$"):
        find_class("goldfisch", classes, names, "class")
    with pytest.raises(UserError, match=r"'Crane' may be any of n02 \(crane\), n03 \(crane\); give the identifier"):
        find_class("Crane", classes, names, "class")


def test_the_nearest_names_are_suggested_or_else_the_first():
    assert nearest("goldfsh", ["crane", "goldfish", "trilobite"]) == ["goldfish"]
    assert nearest("xyz", ["d", "c", "b", "a"]) == ["a", "b", "c"]


def test_networks_of_one_name_are_told_apart_by_their_paths():
    assert told_apart(["BagNet-9", "ResNet-18"], ["a/best.ckpt", "b/best.ckpt"]) == ["BagNet-9", "ResNet-18"]
    twice = ["BagNet-9"] * 2
    assert told_apart(twice, ["s/sgd/best.ckpt", "s/adam/best.ckpt"]) == ["BagNet-9 (sgd)", "BagNet-9 (adam)"]
    assert told_apart(twice, ["s/sgd/best.ckpt", "t/sgd/best.ckpt"]) == ["BagNet-9 (s)", "BagNet-9 (t)"]
    assert told_apart(twice, ["s/best.ckpt", "s/last.ckpt"]) == ["BagNet-9 (best)", "BagNet-9 (last)"]
    assert told_apart(twice, ["s/best.ckpt"] * 2) == ["BagNet-9 (s/best)"] * 2
    mixed = told_apart(["BagNet-9", "BagNet-9", "ResNet-18"], ["x/v1.0", "x/v1.1", "x/v1.0"])
    assert mixed == ["BagNet-9 (v1.0)", "BagNet-9 (v1.1)", "ResNet-18"]
