"""File formats of trained networks for other programs: how each is written, and how it is read to be checked."""

import io
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from bagnet_lightning.checkpoint import Trained, load_trained
from bagnet_lightning.errors import UserError, in_one_line
from bagnet_lightning.exporting.portable import Portable, describe
from bagnet_lightning.inference.logits import takes_any_size

Outputs = dict[str, Tensor]
#: Largest difference that counts as float noise (sums in another order), in units of the largest value.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Format:
    """A file format: write(trained, path) writes one file; load(path) returns what runs it as Portable.forward does."""

    write: Callable[[Trained, Path], None]
    load: Callable[[Path], Callable[[Tensor], Outputs]]


def difference(trained: Trained, run: Callable[[Tensor], Outputs]) -> float:
    """Returns the largest difference of `run` from the network, in units of the largest value.

    Over images of several sizes, if the network takes these. Raises UserError if it is more than float noise, or the
    file takes no images of one of these sizes.
    """
    portable = Portable(trained)
    generator = torch.Generator().manual_seed(0)
    any_size = takes_any_size(trained)
    size = trained.image_size
    differences = []
    shapes = [(1, 3, size, size), (3, 3, size, size)] + [(2, 3, size + 9, size + 22)] * any_size
    for shape in shapes:
        images = torch.rand(shape, generator=generator)
        expected = portable(images) | {"logits": trained.network((images - portable.mean) / portable.std)}
        try:
            actual = run(images)
        except AssertionError as error:  # torch.export's error for a size that it refuses
            raise UserError(
                f"the written file does not take images of {shape[3]} x {shape[2]} px: not kept; another version of "
                f"torch, or format=onnx, may do it ({in_one_line(error)})"
            ) from error
        if expected.keys() != actual.keys():
            raise UserError(f"the written file has outputs {', '.join(actual)} instead of {', '.join(expected)}")
        for name, value in expected.items():
            differences.append((actual[name] - value).abs().max() / value.abs().max().clamp(min=1e-30))
    worst = torch.stack(differences).max().item()  # nan if one is, which Python's max may pass over
    if not worst <= TOLERANCE:
        raise UserError(f"the written file differs from the network by {worst:.1e} of the largest logit: not kept")
    return worst


def _write_safetensors(trained: Trained, path: Path) -> None:
    tensors = {
        name: value.clone(memory_format=torch.contiguous_format)  # safetensors refuses tied weights
        for name, value in trained.network.state_dict().items()
    }
    about = {"format": "pt", "bagnet_lightning": json.dumps(describe(trained, normalises=False))}
    path.write_bytes(safetensors.torch.save(tensors, about))  # save_file's file can be read by its owner only


def _write_onnx(trained: Trained, path: Path) -> None:
    import onnx

    _require_any_size(trained)
    portable = Portable(trained)
    outputs = [*portable(_example(trained))]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")  # torch itself causes it
        program = torch.onnx.export(
            portable,
            (_example(trained),),
            input_names=["images"],
            output_names=outputs,
            dynamic_shapes={"images": {0: "batch", 2: "height", 3: "width"}},
            dynamo=True,
            verbose=False,
        )
    model = program.model_proto
    about = describe(trained, normalises=True)
    about = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    onnx.helper.set_model_props(model, about)
    onnx.save_model(model, path)


def _load_onnx(path: Path) -> Callable[[Tensor], Outputs]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(images: Tensor) -> Outputs:
        return dict(zip(names, map(torch.from_numpy, session.run(names, {"images": images.numpy()})), strict=True))

    return run


def _write_torch_export(trained: Trained, path: Path) -> None:
    _require_any_size(trained)
    any_size = torch.export.Dim.DYNAMIC
    shapes = {"images": {0: any_size, 2: any_size, 3: any_size}}
    program = torch.export.export(Portable(trained), (_example(trained),), dynamic_shapes=shapes)
    about = json.dumps(describe(trained, normalises=True))
    content = io.BytesIO()  # torch's own writing of a file aborts the process where the disk is full
    torch.export.save(program, content, extra_files={"metadata.json": about})
    path.write_bytes(content.getbuffer())


def _require_any_size(trained: Trained) -> None:
    if not takes_any_size(trained):
        raise UserError(
            f"this network takes images of {trained.image_size} px alone: ask for format=safetensors or hub"
        )


def _example(trained: Trained) -> Tensor:
    """Returns an input whose sizes differ from each other and from 1, so that none is taken for a constant."""
    smallest = getattr(trained.network, "receptive_field", 32) + getattr(trained.network, "stride", 0)
    size = max(trained.image_size, smallest)  # more than the training images' if only one patch would fit
    return torch.zeros(2, 3, size, size + 8)


def load_by_timm(folder: Path, trained: Trained) -> Portable:
    """Loads a folder for a hub, with the config.json that timm reads, as other programs do."""
    import timm

    import bagnet_lightning.timm_models  # noqa: F401  registers the BagNets

    return Portable(replace(trained, network=timm.create_model(f"local-dir:{folder}", pretrained=True)))


FORMATS = {
    "onnx": Format(_write_onnx, _load_onnx),
    "safetensors": Format(_write_safetensors, lambda path: Portable(load_trained(path))),
    "torch_export": Format(_write_torch_export, lambda path: torch.export.load(path).module()),
}
