import re
import subprocess

import pytest
import torch
from conftest import SMALL, composed

import bagnet_lightning
from bagnet_lightning.errors import UserError
from bagnet_lightning.machine.device import check_device, chosen_precision, device_name, peak_memory_mib, serves
from bagnet_lightning.machine.versions import commit, versions
from bagnet_lightning.training.fit import fit

TORCH_2_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]  # its build for CUDA 13.0
TORCH_2_0 = ["sm_37", "sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86"]  # that of constraints-k80.txt


@pytest.mark.parametrize(
    ("available", "capability", "accelerator", "expected"),
    [
        (False, None, "auto", "32-true"),
        (True, (9, 0), "auto", "bf16-mixed"),
        (True, (8, 0), "gpu", "bf16-mixed"),
        (True, (7, 5), "auto", "16-mixed"),
        (True, (3, 7), "auto", "32-true"),
        (True, (9, 0), "cpu", "32-true"),
    ],
)
def test_precision_follows_the_compute_capability(monkeypatch, available, capability, accelerator, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert chosen_precision("auto", accelerator) == expected
    assert chosen_precision("64-true", accelerator) == "64-true"


def test_what_a_result_says_of_its_machine():
    cpu = torch.device("cpu")
    assert re.fullmatch(r".+ \(\d+ CPUs\)", device_name(cpu))
    before = peak_memory_mib(cpu)
    torch.ones(2**26).sum()  # 256 MiB
    assert peak_memory_mib(cpu) >= max(before, 256)
    assert versions()["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("architectures", "capability", "served"),
    [
        (TORCH_2_13, (7, 5), True),  # T4
        (TORCH_2_13, (8, 9), True),  # code for 8.6 runs there
        (TORCH_2_13, (12, 1), True),
        (TORCH_2_13, (13, 0), True),  # the driver compiles compute_120
        (TORCH_2_13, (3, 7), False),  # K80
        (TORCH_2_13, (7, 0), False),  # V100
        (TORCH_2_0, (3, 7), True),
        (TORCH_2_0, (9, 0), False),
        (["sm_86"], (8, 0), False),
        (["sm_90a"], (9, 0), True),
        (["sm_90a"], (9, 1), False),
    ],
)
def test_code_serves_its_own_generation_of_cards_and_intermediate_code_all_later_ones(
    architectures, capability, served
):
    assert serves(architectures, capability) is served


def test_a_card_that_torch_cannot_serve_is_one_line_before_anything_is_prepared(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla K80")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (3, 7))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: TORCH_2_13)
    with pytest.raises(
        UserError, match=r"Tesla K80 has compute capability 3\.7, and torch .*constraints-k80\.txt"
    ) as said:
        fit(composed(*SMALL, "trainer=auto"), tmp_path / "run")
    assert "\n" not in str(said.value)
    assert not (tmp_path / "run").exists()
    check_device("cpu")


def test_a_gpu_that_is_not_there_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    check_device("auto")
    with pytest.raises(UserError, match=r"trainer=cpu|make k80"):
        check_device("gpu")


def test_a_checkout_tells_its_commit_and_whether_files_differ_from_it(monkeypatch, tmp_path):
    def git(*arguments: str) -> str:
        name = ["-c", "user.name=n", "-c", "user.email=e"]
        done = subprocess.run(["git", "-C", tmp_path, *name, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    monkeypatch.setattr(bagnet_lightning, "__file__", str(tmp_path / "bagnet_lightning" / "__init__.py"))
    git("init")
    (tmp_path / "file").write_text("as it was")
    git("add", "file")
    git("commit", "-m", "first")
    head = git("rev-parse", "HEAD")[:12]
    assert commit() == head
    (tmp_path / "file").write_text("otherwise")
    assert commit() == f"{head}-dirty"


def test_a_copy_without_its_history_is_told_its_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(bagnet_lightning, "__file__", str(tmp_path / "bagnet_lightning" / "__init__.py"))
    monkeypatch.delenv("BAGNET_COMMIT", raising=False)
    assert commit() is None
    monkeypatch.setenv("BAGNET_COMMIT", "0123456789ab")
    assert commit() == "0123456789ab"
