"""The processes of jobs that run now, found by the log that each writes: Linux only."""

import os
from pathlib import Path


def jobs_at_work(sweep: Path) -> dict[Path, int]:
    """The run folders below `sweep` whose job is at work, and the process that is its worker."""
    found = {}
    for process in Path("/proc").iterdir():
        try:
            log = Path(os.readlink(process / "fd/1"))
        except OSError:  # not a process, or gone
            continue
        if log.name == "train.log" and log.is_relative_to(sweep):
            found[log.parent] = int(process.name)
    return found


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
