"""Packing Tiny ImageNet against only decoding it: images/s of both, and the memory that packing takes.

    python benchmarks/packing.py data            # data: the folder that holds tiny-imagenet-200/

Decodes some thousands of the images with Pillow in two processes, packs all of them with two workers into a temporary
store, and decodes again (the mean rate of both times counts). All files are read once before, so the disk does not
matter. On a busy machine the ratio of processor seconds is the more stable one. Writing as many bytes alone is measured
too: a virtual machine that gets its memory from the host page by page spends much on that. Linux only.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

WORKERS = 2
SAMPLE = 6000
PACK = f"""
import json, resource, sys, time
from bagnet_lightning.data.tiny_imagenet import open_store
start, processor = time.perf_counter(), time.process_time()
open_store(sys.argv[1], "", "", workers={WORKERS})
workers = resource.getrusage(resource.RUSAGE_CHILDREN)
processor = time.process_time() - processor + workers.ru_utime + workers.ru_stime
print(json.dumps([time.perf_counter() - start, processor]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder that holds tiny-imagenet-200/")
    folder = parser.parse_args().root.resolve() / "tiny-imagenet-200"
    paths = sorted(str(path) for path in folder.rglob("*.JPEG"))
    for path in paths:
        Path(path).read_bytes()
    sample = paths[:: max(1, len(paths) // SAMPLE)]
    with multiprocessing.get_context("spawn").Pool(WORKERS) as pool, tempfile.TemporaryDirectory() as root:
        pool.map(decode, [sample[:100]] * 8, chunksize=1)  # starts both processes
        before = decode_all(pool, sample)
        (Path(root) / folder.name).symlink_to(folder)
        seconds, processor, peak = pack(root)
        after = decode_all(pool, sample)
        writing = write(Path(root) / "written", len(paths) * 64 * 64 * 3)
    plain = [2 * len(sample) / (first + second) for first, second in zip(before, after, strict=True)]
    packing = [len(paths) / seconds, len(paths) / processor]
    without_writing = len(paths) / (processor - writing) / plain[1]
    print(f"decoding  {plain[0]:6.0f} images/s  {plain[1]:6.0f} images a processor second  ({len(sample)} images)")
    print(f"packing   {packing[0]:6.0f} images/s  {packing[1]:6.0f} images a processor second  ({len(paths)} images)")
    print(f"ratio     {packing[0] / plain[0]:6.2f}           {packing[1] / plain[1]:6.2f}  (aim: 0.90)")
    print(f"          without the {writing:.1f} processor seconds of writing alone: {without_writing:.2f}")
    print(f"packing takes {seconds:.1f} s and {peak:.0f} MiB above a bare interpreter (aim: under 1024)")


def decode_all(pool, paths: list[str]) -> tuple[float, float]:
    """Returns the elapsed seconds and the processor seconds of decoding `paths`."""
    start = time.perf_counter()
    processor = sum(pool.imap_unordered(decode, [paths[k : k + 100] for k in range(0, len(paths), 100)]))
    return time.perf_counter() - start, processor


def decode(paths: list[str]) -> float:
    start = time.process_time()
    for path in paths:
        with Image.open(path) as image:
            np.asarray(image.convert("RGB"))
    return time.process_time() - start


def pack(root: str) -> tuple[float, float, float]:
    """Returns seconds, processor seconds and the peak MiB of all processes together, less a bare interpreter's."""
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as bare:
        time.sleep(0.5)
        interpreter = resident_mib(bare.pid)
    peak = 0.0
    with subprocess.Popen([sys.executable, "-c", PACK, root], stdout=subprocess.PIPE) as packing:
        while packing.poll() is None:
            peak = max(peak, resident_mib(packing.pid))
            time.sleep(0.1)
        seconds, processor = json.load(packing.stdout)
    return seconds, processor, peak - interpreter


def write(path: Path, size: int) -> float:
    """Returns the processor seconds of writing `size` bytes to a new file."""
    block = bytes(2**22)
    start = time.process_time()
    with open(path, "wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
    return time.process_time() - start


def resident_mib(process: int) -> float:
    """Returns the resident memory of a process and its children; shared pages count in each."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        own = int(Path(f"/proc/{process}/statm").read_text().split()[1]) / 256  # pages of 4 KiB
    except FileNotFoundError:  # it has ended
        return 0.0
    return own + sum(resident_mib(int(child)) for child in children)


if __name__ == "__main__":
    main()
