"""Local features on disk: what they are of, when they are used again, and what becomes of killed jobs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_store import alive

from bagnet_lightning.data.batches import Images
from bagnet_lightning.data.textures import open_store
from bagnet_lightning.errors import UserError
from bagnet_lightning.local_features.detectors import FastBrief, Sift
from bagnet_lightning.local_features.extraction import extracted

FAST = FastBrief(upsample=1, keypoints=40, fast_threshold=20)


@pytest.fixture(scope="module")
def images() -> Images:
    """300 images of which every third is black: more than two jobs, and some without a keypoint."""
    split = open_store(0, 300, 6).splits["train"]
    split.images[::3] = 0
    return Images(split, torch.arange(300), split.labels)


def some(images: Images, chosen) -> Images:
    chosen = torch.tensor(chosen)
    return Images(images.split, chosen, images.labels[chosen])


def test_features_are_those_of_each_image_in_order(images, tmp_path):
    chosen = some(images, list(range(299, -1, -1)))
    bags = extracted(FAST, chosen, tmp_path, workers=2)
    expected, _ = FAST.describe(images.split.images.numpy()[::-1])
    assert len(bags) == 300
    assert bags.binary
    assert bags.without_features == (np.diff(expected.offsets) == 0).sum() >= 100
    whole = bags.read(0, 300)
    np.testing.assert_array_equal(whole.descriptors, expected.descriptors)
    np.testing.assert_array_equal(whole.offsets, expected.offsets)
    part = bags.read(7, 130)
    first, last = expected.offsets[[7, 130]]
    np.testing.assert_array_equal(part.descriptors, expected.descriptors[first:last])
    np.testing.assert_array_equal(part.offsets, expected.offsets[7:131] - first)


def test_the_files_are_arrays_that_numpy_reads(images, tmp_path):
    bags = extracted(FAST, images, tmp_path, workers=1)
    whole = bags.read(0, 300)
    np.testing.assert_array_equal(np.fromfile(bags.folder / "descriptors.bin", np.uint8), whole.descriptors.ravel())
    manifest = json.loads((bags.folder / "manifest.json").read_text())
    assert (manifest["count"], manifest["features"]) == (300, len(whole.descriptors))
    assert extracted(FAST, images, tmp_path, workers=1).seconds == bags.seconds == manifest["seconds"] > 0


def test_they_are_used_again_for_the_same_pixels_and_settings_alone(images, tmp_path):
    part = some(images, list(range(12)))
    bags = extracted(FAST, part, tmp_path, 1)
    folder = bags.folder
    before = (folder / "manifest.json").stat().st_mtime_ns
    again = extracted(FAST, part, tmp_path, 2)
    assert again.folder == folder
    assert again.seconds == bags.seconds > 0  # that they took once
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    others = [
        extracted(FastBrief(upsample=1, keypoints=40, fast_threshold=21), part, tmp_path, 1),
        extracted(Sift(1, 500, 0.04, 10, 1.6), part, tmp_path, 1),
        extracted(FAST, some(images, list(range(1, 13))), tmp_path, 1),
        extracted(FAST, some(images, list(range(11))), tmp_path, 1),
    ]
    assert len({folder, *(other.folder for other in others)}) == 5
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("harm", ["cut", "missing", "no manifest"])
def test_what_is_not_whole_is_computed_again(images, tmp_path, harm):
    part = some(images, list(range(12)))
    bags = extracted(FAST, part, tmp_path, 1)
    expected = bags.read(0, 12).descriptors
    path = bags.folder / ("manifest.json" if harm == "no manifest" else "descriptors.bin")
    if harm == "cut":
        os.truncate(path, path.stat().st_size - 1)
    else:
        path.unlink()
    np.testing.assert_array_equal(extracted(FAST, part, tmp_path, 1).read(0, 12).descriptors, expected)


def test_a_folder_that_cannot_be_made_is_a_user_error(images, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cache=FOLDER"):
        extracted(FAST, some(images, [0]), tmp_path / "file", 1)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_every_file_is_on_the_disk_before_the_folder_has_its_name(images, tmp_path, monkeypatch):
    seen, fsync, rename = [], os.fsync, Path.rename

    def noted_fsync(descriptor):
        seen.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def noted_rename(path, target):
        seen.append(path.name)
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    bags = extracted(FAST, some(images, [1, 2]), tmp_path, 1)
    assert seen[-1] == "new"
    assert sorted(seen[:-1]) == sorted(path.name for path in bags.folder.iterdir())


SLOW = """
import sys, torch
from pathlib import Path
from bagnet_lightning.data.batches import Images
from bagnet_lightning.data.textures import open_store
from bagnet_lightning.local_features.detectors import Sift
from bagnet_lightning.local_features.extraction import extracted
split = open_store(0, 12, 6).splits["train"]
many = torch.arange(12).repeat(2000)
extracted(Sift(1, 500, 0.01, 10, 1.6), Images(split, many, split.labels[many]), Path(sys.argv[1]), 1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_job_leaves_nothing_that_is_used_and_the_next_one_tidies_up(images, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path)])
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 10_000 for path in tmp_path.glob(".*/new/descriptors.bin")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert children
    while any(map(alive, children)):  # they end with their stdin
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert {path.name[0] for path in tmp_path.iterdir()} == {"."}
    bags = extracted(FAST, some(images, list(range(12))), tmp_path, 1)
    assert list(tmp_path.iterdir()) == [bags.folder]
