"""What `evaluate` says of labels and logits, against counting by hand."""

import json

import numpy as np
import pytest
import torch
from conftest import composed
from PIL import Image
from trained_checkpoints import write_checkpoint

from bagnet_lightning.checkpoint import load_trained
from bagnet_lightning.data import of_config
from bagnet_lightning.data.augment import normalize
from bagnet_lightning.data.images import load_image
from bagnet_lightning.errors import UserError
from bagnet_lightning.evaluate import main
from bagnet_lightning.inference.evaluation import evaluate

CLASSES = ["a", "b", "c", "d"]


def test_areas_are_the_share_of_pairs_in_the_right_order():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(3, (30, 4), generator=generator).float()  # many are equal
    labels = torch.randint(3, (30,), generator=generator)  # none is a "d"
    evaluation = evaluate(labels, logits, CLASSES, CLASSES)
    probabilities = logits.double().softmax(1)
    assert [entry["class"] for entry in evaluation["accuracy_by_class"]] == ["a", "b", "c"]
    for index, entry in enumerate(evaluation["accuracy_by_class"]):
        own, others = probabilities[labels == index, index], probabilities[labels != index, index]
        pairs = own[:, None] - others
        assert entry["auc"] == pytest.approx(((pairs > 0).float() + (pairs == 0) / 2).mean().item(), abs=1e-6)
        assert entry["images"] == len(own)
    areas, accuracies = ([entry[key] for entry in evaluation["accuracy_by_class"]] for key in ("auc", "accuracy"))
    assert evaluation["auc"] == pytest.approx(np.mean(areas))
    assert evaluation["balanced_accuracy"] == pytest.approx(np.mean(accuracies))
    right = (logits.argmax(1) == labels).float()
    assert evaluation["accuracy"] == pytest.approx(right.mean().item())
    assert evaluation["accuracy_standard_error"] == pytest.approx((right.std(correction=0) / 30**0.5).item())
    assert evaluation["confusion"].sum() == 30


def test_areas_of_two_classes_are_equal_however_confident_the_network():
    logits = 40 * torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    labels = (
        logits[:, 1] - logits[:, 0] + 60 * torch.randn(500, generator=torch.Generator().manual_seed(1)) > 0
    ).long()
    one, other = (entry["auc"] for entry in evaluate(labels, logits, ["a", "b"], ["a", "b"])["accuracy_by_class"])
    assert one == pytest.approx(other, abs=1e-6)


def test_images_of_one_class_have_no_area():
    evaluation = evaluate(torch.ones(5, dtype=torch.int64), torch.eye(4)[[0, 1, 1, 2, 3]], CLASSES, CLASSES)
    assert (evaluation["auc"], evaluation["accuracy_by_class"][0]["auc"]) == (None, None)
    assert evaluation["accuracy"] == pytest.approx(0.4)


def test_each_class_has_its_part_in_the_standard_error_of_the_balanced_accuracy():
    evaluation = evaluate(torch.tensor([0, 0, 0, 0, 1]), torch.eye(4)[[0, 0, 1, 2, 1]], CLASSES, CLASSES)
    assert evaluation["balanced_accuracy"] == 0.75
    assert evaluation["balanced_accuracy_standard_error"] == pytest.approx((0.25 / 4) ** 0.5 / 2)


def test_a_folder_of_images_elsewhere_is_measured_and_every_score_kept(tmp_path, capsys, monkeypatch):
    checkpoint = write_checkpoint(tmp_path / "run/best.ckpt", "bagnet9")
    trained = load_trained(checkpoint)
    one, other = trained.classes[2], trained.class_names[0]  # by identifier, and by name
    random = np.random.default_rng(0)
    for name in (f"{one}/1.png", f"{one}/patient/2.png", f"{other}/3.png"):
        (tmp_path / "new" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(tmp_path / "new" / name)
    asked = [f"checkpoint={checkpoint}", f"images={tmp_path / 'new'}"]
    (tmp_path / "new/4.png").write_bytes((tmp_path / "new" / one / "1.png").read_bytes())
    main.__wrapped__(composed(*asked, name="evaluate"))
    said, folder = capsys.readouterr(), f"images_{tmp_path.name}"
    assert " on 3 images" in said.out
    assert "4.png is not in a class's folder: left out (1 images)" in said.err
    with np.load(tmp_path / f"run/scores_{folder}_new.npz") as scores:
        names, labels, logits = (scores[key].tolist() for key in ("names", "labels", "logits"))
        assert scores["classes"].tolist() == trained.classes
    assert dict(zip(names, labels, strict=True)) == {f"{one}/1.png": 2, f"{one}/patient/2.png": 2, f"{other}/3.png": 0}
    for name, scored in zip(names, logits, strict=True):
        pixels = torch.from_numpy(load_image(tmp_path / "new" / name, trained.image_size))
        with torch.no_grad():
            expected = trained.network(normalize(pixels[None], trained.mean, trained.std))[0].tolist()
        assert scored == pytest.approx(expected, abs=1e-4)
    evaluation = json.loads((tmp_path / f"run/evaluation_{folder}_new.json").read_text())
    assert (evaluation["images"], evaluation["data"], evaluation["split"]) == (3, str(tmp_path / "new"), None)

    write_checkpoint(tmp_path / "run/last.ckpt", "bagnet9")
    main.__wrapped__(composed(f"checkpoint={tmp_path / 'run/last.ckpt'}", asked[1], name="evaluate"))
    assert (tmp_path / f"run/evaluation_last_{folder}_new.json").exists()

    with monkeypatch.context() as asked_for_a_split:
        asked_for_a_split.setattr(of_config, "is_argument", lambda key: key == "split")
        with pytest.raises(UserError, match="is instead of data and of a split"):
            main.__wrapped__(composed(*asked, "split=train", name="evaluate"))
    with pytest.raises(UserError, match="is instead of data"):
        main.__wrapped__(composed(*asked, "+data.name=x", name="evaluate"))
    (tmp_path / "new" / one).rename(tmp_path / "new/unknown")
    with pytest.raises(UserError, match="unknown: there is no class 'unknown'; nearest: "):
        main.__wrapped__(composed(*asked, name="evaluate"))
    with pytest.raises(UserError, match="must be a folder that holds"):
        main.__wrapped__(composed(asked[0], f"images={tmp_path}/none", name="evaluate"))
