"""The most probable classes of image files, by a trained network.

python -m bagnet_lightning.predict checkpoint=multirun_outputs/SWEEP/RUN/best.ckpt images=FILE_OR_FOLDER
"""

import json
import sys
from pathlib import Path

from omegaconf import DictConfig

from bagnet_lightning.cli import command
from bagnet_lightning.config import data_of_run
from bagnet_lightning.errors import UserError
from bagnet_lightning.files import write_text


@command("predict", data_of_run=True)
def main(config: DictConfig) -> None:
    if (config.images is None) == (config.split is None):
        raise UserError("of what? add images=FILE_OR_FOLDER, or split=test for the unlabelled images of the run's data")
    if config.split not in (None, "test"):
        raise UserError(f"split={config.split}: split must be test; evaluate tells of those with labels")
    for key in ("batch_size", "size"):
        if (key, config[key]) not in (("size", None), ("size", "own")) and not (
            type(config[key]) is int and config[key] > 0
        ):
            raise UserError(f"{key}={config[key]}: {key} must be a whole number from 1")
    from hydra.utils import instantiate

    from bagnet_lightning.checkpoint import load_trained
    from bagnet_lightning.data.images import image_files
    from bagnet_lightning.explanation.inputs import short_name
    from bagnet_lightning.prediction import as_csv, as_json, predict_files, submission

    trained = load_trained(config.checkpoint)
    size = None if config.size == "own" else config.size or trained.image_size
    if config.split:
        data = instantiate(data_of_run(trained.config, config.get("data")), _partial_=True, _convert_="all")()
        files = data.test_files()
    else:
        files = image_files(Path(config.images))
    out = Path(config.out or Path(config.checkpoint).parent)

    predictions = []
    for one in predict_files(trained, files, size, config.batch_size):
        predictions.append(one)
        if one.error:
            print(f"error: {one.error}", file=sys.stderr)
        else:
            said = ", ".join(f"{short_name(trained.class_names[index])} {share:.2f}" for index, share in one.top)
            print(f"{one.file}: {said}")
    unreadable = sum(one.error is not None for one in predictions)

    written = {
        "predictions.csv": as_csv(predictions, trained),
        "predictions.json": json.dumps(as_json(predictions, trained), indent=1, ensure_ascii=False) + "\n",
    }
    if config.split and not unreadable:  # a submission with gaps would be refused
        written["submission.txt"] = submission(predictions, trained)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in written.items():
            write_text(out / name, text)
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error.strerror}); choose another folder with out=FOLDER") from error
    print(f"written: {', '.join(str(out / name) for name in written)}")
    if unreadable:
        raise UserError(f"{unreadable} of {len(predictions)} images could not be read; the others are done")


if __name__ == "__main__":
    main()
