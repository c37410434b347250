"""Reads what torch.save wrote, so that no file can run code."""

import pickle
import tarfile
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch


def safe_load(path: Path, map_location: Any = "cpu") -> Any:
    """The tensors and plain types in `path`. Raises UnpicklingError if it holds more, and what torch.load raises."""
    # Before 2.6 (constraints-k80.txt) torch read these two kinds of file by other ways, whatever weights_only said.
    try:
        scripted = is_zipfile(path) and any(name.endswith("/constants.pkl") for name in ZipFile(path).namelist())
    except BadZipFile as error:
        raise RuntimeError(str(error)) from error
    if scripted or tarfile.is_tarfile(path):
        raise pickle.UnpicklingError("a TorchScript or tar archive, not what torch.save writes")
    return torch.load(path, map_location=map_location, weights_only=True)
