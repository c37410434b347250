"""A checkpoint says which data its network knows, and can have nothing else made."""

import pytest
from conftest import composed
from omegaconf import OmegaConf

from bagnet_lightning.config import plain
from bagnet_lightning.data import of_config
from bagnet_lightning.data.module import Textures
from bagnet_lightning.data.of_config import data_of, data_of_run
from bagnet_lightning.errors import UserError


def test_a_finished_runs_data_with_some_keys_changed():
    run = {"image_size": 64, "data": plain(composed("data.classes=10").data)}
    data = data_of_run(run, OmegaConf.create({"root": "/elsewhere"}))
    assert (data.root, data.classes) == ("/elsewhere", 10)
    assert isinstance(data_of_run(run, composed("data=textures").data), Textures)
    assert data_of_run(run, None).classes == 10
    with pytest.raises(Exception, match="rooot"):
        data_of_run(run, OmegaConf.create({"rooot": 1}))
    with pytest.raises(UserError, match=r"^data\.classes=-1: data\.classes must be"):
        data_of_run(run, OmegaConf.create({"classes": -1}))


def test_a_network_of_another_machine_finds_tiny_imagenet_on_this_one(monkeypatch, tmp_path):
    monkeypatch.setenv("BAGNET_DATA", str(tmp_path))
    run = {"image_size": 64, "data": plain(composed("data.root=/of/another/machine").data)}
    assert data_of_run(run, None).root == str(tmp_path)
    assert data_of_run(run, OmegaConf.create({"root": "/typo"})).root == "/typo"
    run["data"]["root"] = str(tmp_path / "..")
    assert data_of_run(run, None).root == str(tmp_path / "..")


def test_a_class_that_cannot_be_found_is_the_users_mistake():
    with pytest.raises(
        UserError, match=r"the data mydata\.Arrays cannot be imported from here: .*No module named 'mydata'"
    ):
        data_of({"_target_": "mydata.Arrays"})


def test_a_data_module_of_another_kind_is_refused():
    with pytest.raises(UserError, match=r"LightningDataModule must be a subclass of .*\.ImageData"):
        data_of({"_target_": "pytorch_lightning.LightningDataModule"})


def test_other_images_have_the_size_that_the_network_knows(monkeypatch):
    run, asked = {"image_size": 40, "data": plain(composed("data=textures").data)}, composed("data=textures").data
    assert data_of_run(run, asked).image_size == 40
    monkeypatch.setattr(of_config, "is_argument", lambda key: key == "data.image_size")
    assert data_of_run(run, asked).image_size == 64


def test_the_runs_own_source_named_again_keeps_its_choice_of_images(monkeypatch):
    run = {"image_size": 64, "data": plain(composed("data=textures", "data.holdout=0.25", "data.fold=1").data)}
    data = data_of_run(run, composed("data=textures").data)
    assert (data.holdout, data.fold) == (0.25, 1)
    del run["data"]["_target_"]  # as in an export
    assert data_of_run(run, composed("data=textures").data).holdout == 0.25
    monkeypatch.setattr(of_config, "is_argument", lambda key: key == "data.holdout")
    assert data_of_run(run, composed("data=textures").data).holdout == 0
    assert data_of_run(run, composed("data=textures", "data.name=others").data).holdout == 0


def test_the_runs_own_source_named_again_keeps_its_other_keys_but_not_a_place_that_is_not_here(monkeypatch, tmp_path):
    own = ("data.train_images=50", "data.seed=7")
    run = {"image_size": 64, "data": plain(composed("data=textures", *own).data)}
    data = data_of_run(run, composed("data=textures").data)
    assert (data.counts[0], data.seed) == (50, 7)
    run = {"image_size": 64, "data": plain(composed("data.root=/of/another/machine").data)}
    asked = composed().data
    assert data_of_run(run, asked).root == asked.root
    run["data"]["root"] = str(tmp_path)
    assert data_of_run(run, composed("data.root=/of/another/machine").data).root == str(tmp_path)
    (tmp_path / "b").mkdir()
    assert data_of_run(run, composed(f"data.root={tmp_path}/b").data).root == f"{tmp_path}/b"


def test_another_folder_of_images_has_a_choice_of_its_own(monkeypatch):
    def folder(root):
        return composed("data=image_folder", f"data.root={root}", "data.holdout=0.25").data

    run, asked = {"image_size": 64, "data": plain(folder("/a"))}, folder("/b")
    asked.holdout = 0.5
    monkeypatch.setattr(of_config, "is_argument", lambda key: key == "data.root")
    assert data_of_run(run, asked).holdout == 0.5
    asked.root = "/a"
    assert data_of_run(run, asked).holdout == 0.25


@pytest.mark.parametrize("target", ["pathlib.Path.touch", "bagnet_lightning.files.write_text"])
def test_a_checkpoint_cannot_choose_what_is_called(tmp_path, target):
    made = tmp_path / "made"
    call = {"_target_": target, "_args_": [{"_target_": "pathlib.Path", "_args_": [str(made)]}, "text"]}
    with pytest.raises(UserError, match=f"names the data {target}"):
        data_of_run({"data": call}, None)
    nested = plain(composed("data=textures"))
    nested["data"]["name"] = call
    data_of_run(nested, None)
    assert not made.exists()
