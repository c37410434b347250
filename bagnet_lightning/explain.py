"""Which patch of an image spoke for which class: pictures, numbers and a page.

python -m bagnet_lightning.explain checkpoint=multirun_outputs/SWEEP/RUN/best.ckpt images=FILE_OR_FOLDER
"""

import re
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

from omegaconf import DictConfig, ListConfig

from bagnet_lightning.cli import command
from bagnet_lightning.config import data_of_run
from bagnet_lightning.errors import UserError
from bagnet_lightning.files import write_bytes, write_text


@command("explain", data_of_run=True)
def main(config: DictConfig) -> None:
    _check(config)
    from hydra.utils import instantiate

    from bagnet_lightning.explanation.arrays import Arrays
    from bagnet_lightning.explanation.drawing import draw
    from bagnet_lightning.explanation.inputs import find_class, pictures_of_files, pictures_of_split, short_name
    from bagnet_lightning.explanation.maps import explain, load_model
    from bagnet_lightning.explanation.page import Page

    paths = [*config.checkpoint] if isinstance(config.checkpoint, ListConfig) else [config.checkpoint]
    models = [load_model(path, exact_only=config.method == "exact") for path in paths]
    trained = models[0].trained
    if any(model.trained.classes != trained.classes for model in models):
        raise UserError(f"{' and '.join(paths)} do not know the same classes; explain them one by one")
    asked = None if config["class"] is None else find_class(str(config["class"]), trained.classes, trained.class_names)
    approximate, notes = config.method == "all", []
    if approximate and find_spec("captum") is None and all(model.field for model in models):
        approximate = False
        notes.append("exact evidence alone: for others beside it, pip install 'bagnet-lightning[explain]'")
    out = Path(config.out or Path(paths[0]).parent / "explain")
    try:
        out.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=out).close()  # what cannot be written should be said before the work
    except OSError as error:
        raise _unwritable(out, error) from error

    if config.images is None:
        data = instantiate(data_of_run(trained.config, config.get("data")), _partial_=True, _convert_="all")()
        data.setup()
        pictures = pictures_of_split(data, config.split, config.count, trained.classes)
    else:
        size = None if config.size == "own" else config.size or trained.image_size
        pictures, more = pictures_of_files(
            Path(config.images), size, config.count, trained.classes, trained.class_names
        )
        notes += more
    for note in notes:
        print(f"note: {note}", file=sys.stderr)

    page, arrays = Page(models, asked), [Arrays(model) for model in models]
    for number, picture in enumerate(pictures):
        explanations = explain(models, picture, asked, approximate)
        page.add(picture, explanations)
        for model, explanation, kept in zip(models, explanations, arrays, strict=True):
            kept.add(picture, explanation)
            said = short_name(trained.class_names[explanation.predicted])
            truth = "" if picture.label is None else f", true class {short_name(trained.class_names[picture.label])}"
            print(f"{picture.name}: {model.name} says {said}{truth}", end="")
            if model.field:
                patches = explanation.shares[..., 0].numel()
                error = explanation.additivity_error
                print(f"; its logit is the mean of {patches} patches' (off by {error:.0e})", end="")
            print()
        name = re.sub(r"[^\w.+-]+", "_", str(Path(picture.name).with_suffix("")))
        try:
            write_bytes(out / f"{number:03d}_{name}.png", draw(picture, models, explanations))
        except OSError as error:
            raise _unwritable(out, error) from error
    try:
        for number, kept in enumerate(arrays, start=1):
            write_bytes(out / ("evidence.npz" if len(models) == 1 else f"evidence_{number}.npz"), kept.npz())
        write_text(out / "index.html", page.html())
    except OSError as error:
        raise _unwritable(out, error) from error
    print(f"written: {out / 'index.html'}, pictures and evidence*.npz beside it")


def _check(config: DictConfig) -> None:
    if config.method not in ("all", "exact"):
        raise UserError(f"method={config.method}: method must be all or exact")
    if type(config.count) is not int or config.count < 1:
        raise UserError(f"count={config.count}: count must be a whole number from 1")
    if config.size not in (None, "own") and (type(config.size) is not int or config.size < 1):
        raise UserError(f"size={config.size}: size must be a whole number of px from 1, or own")
    if config.size is not None and config.images is None:
        raise UserError(f"size={config.size} is of files; add images=FILE_OR_FOLDER, or leave it out")
    if isinstance(config.checkpoint, ListConfig) and not config.checkpoint:
        raise UserError("checkpoint=[]: give one checkpoint or more")


def _unwritable(out: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to {out} ({error.strerror or error}); choose another folder with out=FOLDER")


if __name__ == "__main__":
    main()
