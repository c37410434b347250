"""Makes a torchvision wheel that was built for CUDA importable beside a CPU build of torch.

Such a wheel (on some package indexes it is the only one) cannot load its library of compiled operators, and its import
then fails with "operator torchvision::nms does not exist", because it registers shape functions for operators that
only that library declares. Nothing here calls those operators; declaring them is enough for models and transforms to
work. The declaration is made when torchvision is about to be imported, so that commands which need neither torch nor
torchvision start without them.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path

MISSING_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def define_missing_operators_before_import() -> None:
    """Declares the missing operators just before the first import of torchvision in this process."""
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _BeforeTorchvision())


class _BeforeTorchvision(MetaPathFinder):
    """A finder that finds nothing: it only notices that torchvision is imported."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            spec = PathFinder.find_spec(name)
            if spec is not None and spec.origin is not None:
                _define_missing_operators(Path(spec.origin).parent)
        return None


def _define_missing_operators(torchvision: Path) -> None:
    import torch

    libraries = list(torchvision.glob("_C*"))
    try:
        for library in libraries:
            torch.ops.load_library(library)
    except OSError:
        libraries = []
    if not libraries:
        for name, schema in MISSING_SCHEMAS.items():
            torch.library.define(f"torchvision::{name}", schema)
