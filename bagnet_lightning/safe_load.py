"""Reads what torch.save wrote, so that no file can run code."""

import pickle
import tarfile
import warnings
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch


def safe_load(path: Path, map_location: Any = "cpu") -> Any:
    """Returns the tensors and plain types in `path`.

    Raises UnpicklingError if it holds anything else, RuntimeError if it is damaged, and what torch.load raises.
    """
    # Before 2.6 (constraints-k80.txt) torch read these two kinds of file in other ways, whatever weights_only was.
    scripted = tarfile.is_tarfile(path)
    if is_zipfile(path):
        try:
            with ZipFile(path) as archive:
                scripted |= any(name.endswith("/constants.pkl") for name in archive.namelist())
                damaged = archive.testzip()  # torch does not look at the checksums
        except BadZipFile as error:
            raise RuntimeError(str(error)) from error
        if damaged:
            raise RuntimeError(f"{damaged} in it is not what was written")
    if scripted:
        raise pickle.UnpicklingError("a TorchScript or tar archive, not what torch.save writes")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TypedStorage is deprecated")  # torch 2.0 itself causes it
        return torch.load(path, map_location=map_location, weights_only=True)
