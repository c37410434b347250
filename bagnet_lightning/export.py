"""A trained network as a file or folder that other programs load.

python -m bagnet_lightning.export checkpoint=multirun_outputs/SWEEP/RUN/best.ckpt format=onnx
"""

import sys
from importlib.util import find_spec
from pathlib import Path

from omegaconf import DictConfig

from bagnet_lightning.cli import command
from bagnet_lightning.errors import UserError
from bagnet_lightning.files import temporary_folder
from bagnet_lightning.rules import PATH, one_of, or_null

SUFFIXES = {"onnx": ".onnx", "safetensors": ".safetensors", "torch_export": ".pt2", "hub": ""}


@command("export", {"checkpoint": PATH, "out": or_null(PATH), "format": one_of(*SUFFIXES)})
def main(config: DictConfig) -> None:
    checkpoint, suffix, hub = Path(config.checkpoint), SUFFIXES[config.format], config.format == "hub"
    if not checkpoint.name:  # "."
        checkpoint = checkpoint.absolute()
    stem = checkpoint.name if checkpoint.is_dir() else checkpoint.stem
    name = f"{stem}{suffix}" if not hub else "hub" if stem == "best" else f"{stem}-hub"
    out = Path(config.out or checkpoint.with_name(name))
    if not hub and out.suffix != suffix:
        raise UserError(f"out={out}: the file's name must end in {suffix}")
    if config.format == "onnx" and not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        raise UserError("format=onnx needs more packages: pip install 'bagnet-lightning[export]'")

    from bagnet_lightning.checkpoint import load_trained
    from bagnet_lightning.exporting.formats import FORMATS, difference, load_by_timm
    from bagnet_lightning.exporting.model_card import in_the_way, write_card

    if hub and (file := in_the_way(out)):
        raise UserError(
            f"{file} was not written by an earlier export: move it, or choose another folder with out=FOLDER"
        )
    trained = load_trained(checkpoint)
    form = FORMATS["safetensors" if hub else config.format]
    target = out / "model.safetensors" if hub else out
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(target) as folder:
            form.write(trained, folder / target.name)
            noise = difference(trained, form.load(folder / target.name))
            if hub:
                for note in write_card(folder, trained, checkpoint):
                    print(f"note: {note}", file=sys.stderr)
                if (folder / "config.json").exists() and find_spec("timm"):
                    noise = max(noise, difference(trained, load_by_timm(folder, trained)))
                (out / "config.json").unlink(missing_ok=True)  # the new network may have none
            for file in folder.iterdir():
                file.replace(target.parent / file.name)
    except OSError as error:
        raise UserError(
            f"cannot write to {target.parent} ({error.strerror}); choose another place with out=PATH"
        ) from error
    print(f"loaded again and run on images: off by {noise:.0e} of the largest logit")
    print(f"written: {out}")


if __name__ == "__main__":
    main()
