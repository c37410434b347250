"""Files that matter are whole, or as they were."""

import os
import re
import resource

import pytest

from bagnet_lightning.files import write_bytes, write_text


@pytest.mark.parametrize(("write", "old", "new"), [(write_text, "old", "x" * 2000), (write_bytes, b"old", b"x" * 2000)])
def test_a_disk_that_takes_only_a_part_keeps_the_old_file(tmp_path, write, old, new):
    path = tmp_path / "result.json"
    write(path, old)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # bytes; more is an error, like a full disk
    try:
        with pytest.raises(OSError, match=f"File too large: {re.escape(repr(str(path)))}"):
            write(path, new)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["result.json"]
    with path.open("rb") as reader:
        write(path, new)
        assert reader.read() == b"old"  # another file has its name now: nobody sees a part of it
    assert path.read_bytes() == b"x" * 2000
