import re

import pytest
import torch

from bagnet_lightning.machine import chosen_precision, commit, device_name, peak_memory_mib, versions


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
    assert commit() is None or re.fullmatch(r"[0-9a-f]{12,}(-dirty)?", commit())
