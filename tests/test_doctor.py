"""The doctor, run as a user runs it, and its findings on machines that are not this one."""

import os
from collections import namedtuple

import pytest
import torch
from conftest import composed

from bagnet_lightning.config import plain
from bagnet_lightning.data.image_folder import name_in_cache
from bagnet_lightning.machine import diagnosis
from bagnet_lightning.machine.diagnosis import facts, problems


def doctor(*overrides) -> dict:
    return plain(composed(*overrides, name="doctor"))


def test_a_machine_that_can_run_a_sweep(command, tmp_path):
    healthy = command("doctor", "trainer=cpu", BAGNET_DATA=str(tmp_path / "none"))
    assert healthy.returncode == 0, healthy.stdout
    told = {line.split()[0]: line for line in healthy.stdout.splitlines()}
    assert {"device", "driver", "torch", "precision", "versions", "memory", "runs", "data", "W&B"} <= set(told)
    assert "32-true" in told["precision"]
    assert "to be downloaded" in told["data"]
    assert not any(tmp_path.iterdir())


def test_what_would_stop_a_sweep_is_a_line_with_its_remedy_and_exit_code_1(command, tmp_path):
    (tmp_path / "multirun_outputs").touch()
    ill = command("doctor", "trainer=cpu", "data=image_folder", "data.root=nowhere")
    assert ill.returncode == 1
    assert "multirun_outputs cannot be written (Not a directory): run from" in ill.stdout
    assert "data.root=nowhere does not exist" in ill.stdout


def test_packed_images_are_found_and_an_offline_mode_lacks_no_key(tmp_path, monkeypatch):
    root = tmp_path / "images (1) [new]"
    (root / "train").mkdir(parents=True)
    asked = ["trainer=cpu", "data=image_folder", f"data.root='{root}'", f"data.cache={tmp_path}/cache"]
    assert "to be packed" in facts(doctor(*asked))["data"]
    (tmp_path / "cache" / f"{name_in_cache(root)}-64.store").mkdir(parents=True)
    next((tmp_path / "cache").iterdir()).joinpath("manifest.json").touch()
    assert "packed" in facts(doctor(*asked))["data"]
    assert "to be packed" not in facts(doctor(*asked))["data"]
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert facts(doctor(*asked))["W&B"] == "offline"
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    assert "no key" in facts(doctor(*asked))["W&B"]


def test_a_gpu_that_torch_cannot_use_is_not_asked_for_its_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # counted by NVML, without CUDA
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert facts(doctor("data=textures"))["device"]


def test_little_room_is_a_warning_and_none_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(diagnosis, "_free_memory", lambda: 100.0)
    usage = namedtuple("usage", "free")
    for gib, fatal in ((3, False), (0.1, True)):
        monkeypatch.setattr(diagnosis.shutil, "disk_usage", lambda path, gib=gib: usage(gib * 2**30))
        found = problems(doctor("trainer=cpu", "data=textures"))
        assert [(problem.fatal, "GiB left, of about 7 for" in problem.text) for problem in found] == [(fatal, True)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_presets_for_a_card_say_that_there_is_none(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    for preset in ("t4", "k80"):
        assert problems(doctor(f"trainer={preset}", "data=textures"))[0].fatal
    amx, avx512 = diagnosis.BFLOAT16
    for has, told in (((), ""), ((amx, avx512), diagnosis.BFLOAT16[amx]), ((avx512,), diagnosis.BFLOAT16[avx512])):
        capabilities = {amx: amx in has, avx512: avx512 in has}
        monkeypatch.setattr(torch.cpu, "get_capabilities", capabilities.copy, raising=False)
        assert facts(doctor("trainer=k80"))["precision"] == f"32-true{told}"
    assert facts(doctor("trainer=t4"))["W&B"] == "online"


def test_a_folder_of_images_without_train_and_val_is_told_of(tmp_path):
    (tmp_path / "train").mkdir()
    asked = doctor("trainer=cpu", "data=image_folder", f"data.root={tmp_path}")
    words = "must be a folder that holds train/<class>/* and val/<class>/*"
    assert any(words in one.text for one in problems(asked))
    (tmp_path / "train/red").mkdir()
    asked = doctor("trainer=cpu", "data=image_folder", f"data.root={tmp_path}", "data.holdout=0.1")
    assert not any(words in one.text for one in problems(asked))


def test_data_that_are_there(tmp_path):
    (tmp_path / "tiny-imagenet-200").mkdir()
    asked = doctor("trainer=cpu", f"data.root={tmp_path}")
    assert "to be packed" in facts(asked)["data"]
    store = tmp_path / "tiny-imagenet-200.store"
    store.mkdir()
    (store / "manifest.json").touch()
    assert "packed;" in facts(asked)["data"]
    assert os.listdir(store) == ["manifest.json"]
