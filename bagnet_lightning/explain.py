"""Which patch, or which keypoint, of an image spoke for which class: pictures, numbers and a page.

python -m bagnet_lightning.explain checkpoint=multirun_outputs/SWEEP/RUN/best.ckpt images=FILE_OR_FOLDER
python -m bagnet_lightning.explain checkpoint=multirun_outputs/SWEEP/RUN/model.safetensors images=FILE_OR_FOLDER
"""

import re
import sys
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from omegaconf import DictConfig, ListConfig

from bagnet_lightning.cli import command
from bagnet_lightning.config import data_of_run
from bagnet_lightning.errors import UserError
from bagnet_lightning.files import write_bytes

if TYPE_CHECKING:
    from bagnet_lightning.explanation.keypoints import Keypoints
    from bagnet_lightning.explanation.networks import Networks


@command("explain", data_of_run=True)
def main(config: DictConfig) -> None:
    _check(config)
    from hydra.utils import instantiate

    from bagnet_lightning.explanation.inputs import pictures_of_files, pictures_of_split

    paths = [*config.checkpoint] if isinstance(config.checkpoint, ListConfig) else [config.checkpoint]
    explained = _load(paths, None if config["class"] is None else str(config["class"]), config.exact)
    out = Path(config.out or Path(paths[0]).parent / "explain")
    try:
        out.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=out).close()  # what cannot be written should be said before the work
    except OSError as error:
        raise _unwritable(out, error) from error

    classes, notes = explained.classes, explained.notes
    if config.images is None:
        data = instantiate(data_of_run(explained.config, config.get("data")), _partial_=True, _convert_="all")()
        data.setup()
        pictures = pictures_of_split(data, config.split, config.count, classes)
    else:
        size = None if config.size == "own" else config.size or explained.image_size
        pictures, more = pictures_of_files(Path(config.images), size, config.count, classes, explained.class_names)
        notes += more
    for note in notes:
        print(f"note: {note}", file=sys.stderr)

    for number, picture in enumerate(pictures):
        png, lines = explained.explain(picture)
        for line in lines:
            print(f"{picture.name}: {line}")
        name = re.sub(r"[^\w.+-]+", "_", str(Path(picture.name).with_suffix("")))
        _write(out, f"{number:03d}_{name}.png", png)
    for name, content in explained.files().items():
        _write(out, name, content)
    print(f"written: {out / 'index.html'}, pictures and evidence*.npz beside it")


def _load(paths: list[str], asked: str | None, exact: bool) -> "Keypoints | Networks":
    """The networks, or the system of local features, whose files these are; asked, exact: of Networks."""
    from bagnet_lightning.local_features.model import check_installed, is_local_model

    if not any(is_local_model(path) for path in paths):
        from bagnet_lightning.explanation.networks import Networks

        return Networks(paths, asked, exact)
    if len(paths) > 1:
        raise UserError("systems of local features are explained one by one: give one checkpoint")
    check_installed()
    from bagnet_lightning.explanation.keypoints import Keypoints

    return Keypoints(paths[0], asked)


def _check(config: DictConfig) -> None:
    if not isinstance(config.exact, bool):
        raise UserError(f"exact={config.exact}: exact must be true or false")
    if type(config.count) is not int or config.count < 1:
        raise UserError(f"count={config.count}: count must be a whole number from 1")
    if config.size not in (None, "own") and (type(config.size) is not int or config.size < 1):
        raise UserError(f"size={config.size}: size must be a whole number of px from 1, or own")
    if config.size is not None and config.images is None:
        raise UserError(f"size={config.size} is of files; add images=FILE_OR_FOLDER, or leave it out")
    if isinstance(config.checkpoint, ListConfig) and not config.checkpoint:
        raise UserError("checkpoint=[]: give one checkpoint or more")


def _write(out: Path, name: str, content: bytes) -> None:
    try:
        write_bytes(out / name, content)
    except OSError as error:
        raise _unwritable(out, error) from error


def _unwritable(out: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to {out} ({error.strerror or error}); choose another folder with out=FOLDER")


if __name__ == "__main__":
    main()
