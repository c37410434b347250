import ctypes
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bagnet_lightning.machine.memory import keep_freed_memory

FAULTS = """
import os
import resource
import torch
from bagnet_lightning.machine.memory import keep_freed_memory

if os.fork():  # the child, which ends first, keeps what it frees
    os.wait()
else:
    keep_freed_memory()

def step():  # as in training: several large tensors live at a time, 160 MiB in all
    activations = [torch.ones(10 << 20) for _ in range(4)]

for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, flush=True)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the switch is glibc's")
def test_large_tensors_are_made_without_page_faults():
    told = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True).stdout
    kept, default = map(int, told.split())
    assert kept < 500
    assert kept < default / 10


def test_older_glibc_is_given_as_much_as_it_accepts(monkeypatch):
    accepted = {}

    def mallopt(option, value):
        if option == -3 and value > 2**25:  # M_MMAP_THRESHOLD
            return 0
        accepted[option] = value
        return 1

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    keep_freed_memory()
    assert accepted == {-3: 2**25, -1: 2**31 - 1}
