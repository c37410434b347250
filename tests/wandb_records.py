"""Reads back what an offline W&B run wrote: a LevelDB log of protobuf records behind a 7-byte header."""

import json
import struct
import time
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

HEADER, BLOCK = 7, 32768  # bytes: of the file and of each piece; pieces do not cross blocks


def records(path: Path) -> list[Record]:
    """Waits for the record of the run's exit: W&B's own process may still be writing when run.finish() returns."""
    for _ in range(300):
        found = _written(path.read_bytes())
        if found and found[-1].HasField("exit"):
            return found
        time.sleep(0.1)
    raise TimeoutError(f"{path} never ends")


def _written(content: bytes) -> list[Record]:
    assert content[:4] == b":W&B"
    found, pieces, place = [], [], HEADER
    while place + HEADER <= len(content):
        if BLOCK - place % BLOCK < HEADER:  # the rest of a block is padding
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + HEADER])
        if place + HEADER + length > len(content):  # it is being written
            break
        pieces.append(content[place + HEADER : place + HEADER + length])
        place += HEADER + length
        if kind in (1, 4):  # whole, or the last piece
            found.append(Record.FromString(b"".join(pieces)))
            pieces = []
    return found


def history(found: list[Record]) -> list[dict]:
    """One dictionary a call of run.log."""
    rows = []
    for record in found:
        if record.HasField("history"):
            rows.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item})
    return rows


def summary(found: list[Record]) -> dict:
    merged = {}
    for record in found:
        for item in record.summary.update:
            merged[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
    return merged
