"""Shows which patches, or keypoints, of an image are evidence for which class: pictures, arrays and a page.

python -m bagnet_lightning.explain checkpoint=multirun_outputs/SWEEP/RUN/best.ckpt images=FILE_OR_FOLDER
python -m bagnet_lightning.explain checkpoint=multirun_outputs/SWEEP/RUN/model.safetensors images=FILE_OR_FOLDER
"""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, ListConfig

from bagnet_lightning.cli import command
from bagnet_lightning.errors import UserError
from bagnet_lightning.files import writable, write_bytes, writing
from bagnet_lightning.names import class_indices
from bagnet_lightning.rules import BOOL, IMAGE_SIZE, PATH, or_null, or_own, whole

if TYPE_CHECKING:
    from bagnet_lightning.explanation.keypoints import Keypoints
    from bagnet_lightning.explanation.networks import Networks


RULES = {
    "checkpoint": (lambda value: bool(value) and isinstance(value, (str, list)), "a path, or a list of them"),
    "images": or_null(PATH),
    "out": or_null(PATH),
    "exact": BOOL,
    "count": whole(1),
    "mistakes": BOOL,
    "size": or_own(IMAGE_SIZE),
}


@command("explain", RULES, data_of_run=True)
def main(config: DictConfig) -> None:
    if config.size is not None and config.images is None:
        raise UserError(f"size={config.size} applies to files; add images=FILE_OR_FOLDER, or leave it out")
    if config.mistakes and config.images is not None:
        raise UserError("mistakes=true applies to a split of the run's data; leave images= out")
    from bagnet_lightning.data.of_config import data_of_run
    from bagnet_lightning.explanation.inputs import pictures_of_files, pictures_of_split

    paths = [*config.checkpoint] if isinstance(config.checkpoint, ListConfig) else [config.checkpoint]
    explained = _load(paths, None if config["class"] is None else str(config["class"]), config.exact)
    out = writable(Path(config.out or Path(paths[0]).parent / "explain"))

    classes, notes = explained.classes, explained.notes
    if config.images is None:
        data = data_of_run(explained.config, config.get("data"))
        data.setup()
        chosen = explained.mistaken if config.mistakes else None
        pictures = pictures_of_split(data, config.split, config.count, classes, chosen)
    else:
        size = None if config.size == "own" else config.size or explained.image_size
        indices = class_indices(classes, explained.class_names)
        pictures, more = pictures_of_files(Path(config.images), size, config.count, indices, explained.check_size)
        notes += more
    for note in notes:
        print(f"note: {note}", file=sys.stderr)

    earlier = {*out.glob("[0-9][0-9][0-9]*_*.png"), *out.glob("evidence*.npz")}
    for number, picture in enumerate(pictures):
        png, lines = explained.explain(picture)
        for line in lines:
            print(f"{picture.name}: {line}")
        name = re.sub(r"[^\w.+-]+", "_", str(Path(picture.name).with_suffix("")))[-50:]  # of 255 bytes that it may have
        file = out / f"{number:03d}_{name}.png"
        with writing(out):
            write_bytes(file, png)
        earlier.discard(file)
    with writing(out):
        for name, content in explained.files().items():
            write_bytes(out / name, content)
            earlier.discard(out / name)
    if earlier:
        print(f"note: {len(earlier)} of the files in {out} are left from an earlier command", file=sys.stderr)
    print(f"written: {out / 'index.html'}, pictures and evidence*.npz beside it")


def _load(paths: list[str], requested: str | None, exact: bool) -> "Keypoints | Networks":
    """Loads networks, or a system of local features, from their files. requested, exact: as for Networks."""
    from bagnet_lightning.local_features.model import check_installed, is_local_model

    if not any(is_local_model(path) for path in paths):
        from bagnet_lightning.explanation.networks import Networks

        return Networks(paths, requested, exact)
    if len(paths) > 1:
        raise UserError("systems of local features are explained one by one: give one checkpoint")
    check_installed()
    from bagnet_lightning.explanation.keypoints import Keypoints

    return Keypoints(paths[0], requested)


if __name__ == "__main__":
    main()
