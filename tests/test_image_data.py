from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SMALL, composed
from hydra.utils import instantiate
from PIL import Image

from bagnet_lightning.checkpoint import published
from bagnet_lightning.data.augment import augment, draw_keys, rescale
from bagnet_lightning.data.choice import hold_out
from bagnet_lightning.data.store import store_of_arrays
from bagnet_lightning.errors import UserError


def data(*overrides, small=SMALL):
    module = instantiate(composed(*small, *overrides).data, _convert_="all")
    module.setup()
    return module


def test_images_are_normalised_by_their_own_statistics_by_imagenets_or_not_at_all():
    own = data("data.normalize=true")
    assert (own.mean, own.std) == (own.store.mean, own.store.std)
    imagenet = data("data.normalize=imagenet")
    assert (imagenet.mean, imagenet.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert data("data.normalize=false").mean == (0, 0, 0)


def test_a_channel_that_is_the_same_everywhere_becomes_zeros():
    module = instantiate(composed(*SMALL, "data.normalize=true").data, _convert_="all")
    pixels, labels = np.full((4, 9, 9, 3), 51, np.uint8), np.array([0, 1, 0, 1])
    pixels[:2, ..., 0] = 102
    module.open_store = lambda: store_of_arrays("ab", "ab", dict.fromkeys(("train", "val"), (pixels, labels)))
    module.setup()
    images = module.unaugmented(torch.from_numpy(pixels), torch.arange(4))
    assert images[:, 0].unique().tolist() == pytest.approx([-1, 1])
    assert images[:, 1:].abs().max() < 1e-6


def trainer(epoch, batches_used=0):
    progress = SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(ready=batches_used)))
    return SimpleNamespace(
        training=True,
        world_size=1,
        current_epoch=epoch,
        fit_loop=SimpleNamespace(epoch_loop=progress),
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )


def labels_of(images):
    return images.labels.bincount().tolist()


def test_batches_are_the_stores_images_once_an_epoch_in_an_order_of_seed_and_epoch():
    module = data()
    epochs = {}
    for seed, epoch in [(0, 0), (0, 0), (0, 1), (1, 0)]:
        module.seed, module._position = seed, lambda epoch=epoch: (epoch, 0)
        batches = list(module.train_dataloader())
        assert [len(labels) for _, labels, _ in batches] == [12, 12, 12]
        order = torch.cat([indices for _, _, indices in batches])
        assert torch.equal(order.sort().values, torch.arange(36))
        for images, labels, indices in batches:
            assert torch.equal(images, module.store.splits["train"].images[module.train_images.chosen[indices]])
            assert torch.equal(labels, module.train_images.labels[indices])
        assert torch.equal(epochs.setdefault((seed, epoch), order), order)
    assert len({tuple(order.tolist()) for order in epochs.values()}) == 3


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(12, [12, 12, 12]), (7, [7] * 4 + [8]), (35, [36]), (50, [36]), (1, [1] * 36)]
)
def test_no_image_is_left_alone_at_the_end_of_an_epoch(batch_size, sizes):
    module = data(f"data.batch_size={batch_size}")
    module._position = lambda: (0, 0)
    loader = module.train_dataloader()
    batches = [indices for _, _, indices in loader]
    assert [len(indices) for indices in batches] == sizes
    assert (len(loader), loader.order.smallest) == (len(sizes), min(batch_size, sizes[0]))
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(36))


def test_a_continued_epoch_goes_on_with_the_batches_that_were_left():
    module = data()
    module._position = lambda: (4, 0)
    whole = [indices for _, _, indices in module.train_dataloader()]
    module._position = lambda: (4, 2)
    (rest,) = [indices for _, _, indices in module.train_dataloader()]
    assert torch.equal(rest, whole[2])


def test_a_training_draws_its_order_and_its_augmentation_anew_in_every_epoch_by_its_seed():
    module, orders = data("data.crop_padding=4", "seed=3"), []
    for epoch in (0, 1):
        module.trainer = trainer(epoch)
        batch = pixels, _, indices = next(iter(module.train_dataloader()))
        views = augment(pixels, indices, draw_keys(3, epoch), 4, True)
        assert torch.equal(module.on_after_batch_transfer(batch, 0)[0], rescale(views, module.scale, module.bias))
        module.trainer.training = False
        assert torch.equal(module.on_after_batch_transfer(batch, 0)[0], rescale(pixels, module.scale, module.bias))
        orders.append(indices)
    assert not torch.equal(*orders)


@pytest.mark.parametrize("overrides", [[], ["data.classes=2", "data.holdout=0.5"]])
def test_batches_of_images_kept_on_the_device_are_the_same(overrides):
    batches = {}
    for resident in (True, False):
        module = data(*overrides, f"data.device_resident={str(resident).lower()}")
        module.trainer = trainer(3, batches_used=1)
        module.setup("fit")
        assert (module.train_source is module.train_images) != resident
        train = [module.on_after_batch_transfer(batch, 0) for batch in module.train_dataloader()]
        module.trainer.training = False
        batches[resident] = train + [module.on_after_batch_transfer(batch, 0) for batch in module.val_dataloader()]
    assert len(batches[True]) == len(batches[False])
    for kept, read in zip(batches[True], batches[False], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(kept, read, strict=True))


def test_a_network_is_not_measured_on_held_out_images_that_it_was_trained_on():
    held_out = data("data.holdout=0.25")
    same, other, side = held_out.store.digests["train"], "0" * 64, held_out.store.side
    everything = held_out.class_ids
    for holdout, classes, digest, name, refused in (
        (0.25, everything, same, "textures", None),
        (0.0, everything, same, "renamed", "held out nothing, and its network has seen these images"),
        (0.25, everything[:3], same, "textures", r"held out 0\.25 of other classes"),
        (0.0, everything, other, "renamed", None),
        (0.25, everything, other, "textures", "cannot be told"),  # images have been added, say
    ):
        config = {
            "train_digest": digest,
            "data": {"name": name, "holdout": holdout, "classes": None},
            "image_size": side,
        }
        with pytest.raises(UserError, match=refused) if refused else nullcontext():
            held_out.check_unseen(config, classes)
    elsewhere = {"train_digest": other, "data": {"name": "textures", "root": "/elsewhere"}, "image_size": side}
    held_out.check_unseen(elsewhere, everything)  # other images, whatever they are called
    nothing_held_out = {"train_digest": same, "data": {"name": "textures"}, "image_size": side}
    data().check_unseen(nothing_held_out, everything)
    of_other_size = {"train_digest": other, "data": {"name": "textures", "holdout": 0.0}, "image_size": side + 1}
    with pytest.raises(UserError, match="held out nothing"):  # digests are of the resized pixels
        held_out.check_unseen(of_other_size, everything)
    another = {"train_digest": same, "data": {"holdout": 0.25, "fold": 1}, "image_size": side}
    with pytest.raises(UserError, match=r"held out 0\.25, fold 1, and its network has seen"):
        held_out.check_unseen(another, everything)
    data("data.holdout=0.25", "data.fold=1").check_unseen(another, everything)


def test_classes_by_number_identifier_and_name():
    everything = data()
    count = len(everything.class_ids)
    assert labels_of(everything.train_images) == [36 // count] * count
    two = data("data.classes=2")
    assert two.class_ids == everything.class_ids[:2]
    chosen = instantiate(composed(*SMALL).data, _convert_="all")
    chosen.classes = [everything.class_names[3], everything.class_ids[1]]
    chosen.setup()
    assert chosen.class_ids == [everything.class_ids[3], everything.class_ids[1]]
    originals = chosen.store.splits["train"].labels[chosen.train_images.chosen]
    assert set(zip(originals.tolist(), chosen.train_images.labels.tolist(), strict=True)) == {(3, 0), (1, 1)}


def test_class_folders_may_be_numbers():
    chosen = instantiate(composed(*SMALL).data, _convert_="all")
    store = chosen.open_store()
    chosen.classes, chosen.open_store = [2, 0], lambda: replace(store, classes=[*"012345"], class_names=[*"012345"])
    chosen.setup()
    assert chosen.class_ids == ["2", "0"]


def test_unknown_or_too_many_classes_are_refused():
    with pytest.raises(UserError, match="has 6 classes"):
        data("data.classes=100")
    with pytest.raises(UserError, match="there is no class 'nothing'; nearest: "):
        data("data.classes=[nothing]")
    with pytest.raises(UserError, match="names a class twice"):
        data(f"data.classes=[{data().class_ids[0]},{data().class_ids[0]}]")


def test_labels_are_the_places_of_classes_in_those_that_a_network_knows():
    module = data("data.classes=3")
    a, b, c = module.class_ids
    known = [c, "another", a, b]
    for split, images in (("train", module.train_images), ("val", module.val_images)):
        labelled = module.labelled_for(known, split)
        assert labelled.chosen is images.chosen
        assert [known[label] for label in labelled.labels] == [module.class_ids[label] for label in images.labels]
    with pytest.raises(UserError, match=f"{c!r} of the data is not one of them"):
        module.labelled_for([a, b], "val")


def test_images_of_the_user_need_no_val_split_beside_a_holdout_and_may_have_a_labelled_test_split(tmp_path):
    for name in ("train/red/1", "train/red/2", "train/blue/1", "train/blue/2", "test/red/1", "test/1"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), "red").save(tmp_path / f"{name}.png")
    asked = ("data=image_folder", f"data.root={tmp_path}", "data.image_size=9")
    module = data(*asked, "data.holdout=0.5", small=())
    assert labels_of(module.train_images) == labels_of(module.val_images) == [1, 1]
    tested = module.labelled_for(["blue", "green", "red"], "test")
    assert (tested.chosen.tolist(), tested.labels.tolist()) == ([1], [2])
    (tmp_path / "test/red/1.png").unlink()
    with pytest.raises(UserError, match=r"split=test: .* no labelled images"):
        data(*asked, "data.holdout=0.5", small=()).labelled_for(["blue", "red"], "test")
    with pytest.raises(UserError, match="val is missing"):
        data(*asked, small=())


def test_images_of_a_group_are_held_out_together_and_may_not_be_in_train_and_val(tmp_path):
    groups = {"blue": "aabbbccddd", "red": "aeeffggghij"}  # a letter an image, in the store's order
    for name, letters in groups.items():
        (tmp_path / "train" / name).mkdir(parents=True)
        for number, letter in enumerate(letters):
            Image.new("RGB", (9, 9)).save(tmp_path / "train" / name / f"patient-{letter}_{number:02}.png")
    asked = ("data=image_folder", f"data.root={tmp_path}", "data.image_size=9", "data.holdout=0.25")

    def letters(images):
        return ["".join(groups.values())[index] for index in images.chosen.tolist()]

    held = []
    for fold in range(4):
        module = data(*asked, "data.group='patient-([a-z])'", f"data.fold={fold}", small=())
        assert not {*letters(module.train_images)} & {*letters(module.val_images)}
        assert len(module.train_images) + len(module.val_images) == 21
        held += letters(module.val_images)
    assert sorted(held) == sorted("".join(groups.values()))
    assert {*letters(data(*asked, small=()).train_images)} & {*letters(data(*asked, small=()).val_images)}

    with pytest.raises(UserError, match=r"data\.group=doctor matches nothing in the name of .*blue/patient-a_00\.png"):
        data(*asked, "data.group=doctor", small=())
    with pytest.raises(UserError, match="no image of class 'blue' is left to train on"):
        data(*asked[:3], "data.holdout=0.6", "data.group=patient", "data.classes=[blue]", small=())
    choice = {"name": "image_folder", "holdout": 0.25, "fold": 3, "classes": None}
    config = {"image_size": 9, "train_digest": module.store.digests["train"], "data": choice, "model": {}}
    with pytest.raises(UserError, match="has seen these images"):
        module.check_unseen(config, module.class_ids)
    choice["group"] = "patient-([a-z])"
    module.check_unseen(published(config), module.class_ids)
    both = data(*asked, "data.group='(patient)-([a-z])'", small=())
    assert {*both.groups("train")} == {f"patient/{letter}" for letter in "abcdefghij"}

    (tmp_path / "train/red/patient-j_10.png").rename(tmp_path / "train/red/patient-k_10.png")
    for name in groups:
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "val" / name / f"patient-j_{name}.png")
    data(*asked[:3], "data.group='patient-.'", small=())
    Image.new("RGB", (9, 9)).save(tmp_path / "val/red/patient-k_0.png")
    with pytest.raises(UserError, match="1 groups of images are in train and in val, such as 'patient-k'"):
        data(*asked[:3], "data.group='patient-.'", small=())
    data(*asked[:3], "data.group='patient-.'", "data.classes=[blue]", small=())
    (tmp_path / "val/red/patient-k_0.png").rename(tmp_path / "val/red/patient-l_0.png")
    (tmp_path / "test").mkdir()
    for name in ("unknown.png", "red/patient-a_0.png"):
        (tmp_path / "test" / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "test" / name)
    module = data(*asked[:3], "data.group='patient-.'", small=())  # nothing is measured on test yet
    with pytest.raises(UserError, match=r"data\.group=patient-\. matches nothing in the name of .*test/unknown\.png"):
        module.labelled_for(["blue", "red"], "test")
    (tmp_path / "test/unknown.png").unlink()
    with pytest.raises(UserError, match="in train and in test, such as 'patient-a'"):
        data(*asked[:3], "data.group='patient-.'", small=()).labelled_for(["blue", "red"], "test")
    with pytest.raises(UserError, match=r"data\.group=patient\(-x\)\? matches nothing"):
        data(*asked[:3], "data.group='patient(-x)?'", small=())


def test_images_have_the_names_of_their_files_and_a_group_may_be_a_folder(tmp_path):
    for name in ("train/red/1/a.png", "train/red/2/a.png", "train/blue/3/a.png", "train/blue/4/a.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / name)
    asked = ("data=image_folder", f"data.root={tmp_path}", "data.image_size=9", "data.holdout=0.5")
    module = data(*asked, "data.group='^[^/]+'", small=())
    names = [*module.names(module.train_images), *module.names(module.val_images)]
    assert sorted(names) == [f"train/{name}/a.png" for name in ("blue/3", "blue/4", "red/1", "red/2")]
    textures = data()
    assert textures.names(textures.val_images)[:2] == [f"val {index}" for index in textures.val_images.chosen[:2]]


def test_a_group_is_of_the_class_that_most_of_its_images_have():
    by_class = [torch.arange(5), torch.arange(5, 45)]
    groups = ["large", *"abcd", *["large"] * 40]  # one image of class 0 in a group of 41
    for fold in (0, 1):
        _, held = hold_out(by_class, 0.5, fold, groups)
        assert len({*held[0].tolist()} & {1, 2, 3, 4}) == 2


def test_images_are_kept_on_a_gpu_with_room_for_four_times_as_much(monkeypatch):
    module, gpu = data(), torch.device("cuda")
    needed = module.train_images.nbytes + module.val_images.nbytes
    free = [4 * needed + 4]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[0], 2**40))
    assert module._uses_device_copies(gpu)
    free[0] = 4 * needed
    assert not module._uses_device_copies(gpu)
    module.device_resident = True
    assert module._uses_device_copies(gpu)
    free[0] = needed - 1
    with pytest.raises(UserError, match=r"data\.device_resident=true: the images take"):
        module._uses_device_copies(gpu)


def test_images_per_class_cuts_the_train_split_alone():
    module = data("data.images_per_class=2")
    count = len(module.class_ids)
    assert labels_of(module.train_images) == [2] * count
    assert len(module.val_images) == 12


def test_folds_of_a_holdout_are_every_image_once():
    folds = [data("data.holdout=0.2", f"data.fold={fold}") for fold in range(5)]
    held = [index for fold in folds for index in fold.val_images.chosen.tolist()]
    assert sorted(held) == list(range(36))
    for fold in folds:
        assert {*fold.train_images.chosen.tolist()} == {*range(36)} - {*fold.val_images.chosen.tolist()}
        assert labels_of(fold.train_images) == [6 - count for count in labels_of(fold.val_images)]
    for asked in (["data.holdout=0.2", "data.fold=5"], ["data.fold=1"]):
        with pytest.raises(UserError, match=r"has no such fold; those of 0\.2 are 0 to 4"):
            data(*asked)


def test_holdout_is_stratified_disjoint_and_the_same_for_every_seed():
    module, other = data("data.holdout=0.5"), data("data.holdout=0.5", "seed=7")
    count = len(module.class_ids)
    assert labels_of(module.val_images) == [36 // count // 2] * count
    assert module.val_images.split is module.store.splits["train"]
    kept, held = set(module.train_images.chosen.tolist()), set(module.val_images.chosen.tolist())
    assert not kept & held
    assert len(kept | held) == 36
    assert held == set(other.val_images.chosen.tolist())
    assert sorted(held)[:6] == [1, 3, 5, 8, 9, 10]
    with pytest.raises(UserError, match=r"data\.holdout"):
        data("data.holdout=0.01")


def test_only_squares_are_turned():
    module = instantiate(composed(*SMALL, "data.flip=dihedral").data, _convert_="all")
    wide, labels = np.zeros((4, 9, 12, 3), np.uint8), np.array([0, 1, 0, 1])
    module.open_store = lambda: store_of_arrays("ab", "ab", {"train": (wide, labels), "val": (wide, labels)})
    with pytest.raises(UserError, match="dihedral turns squares; images of 12 x 9 px"):
        module.setup()
