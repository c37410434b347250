"""The most probable classes of image files, by a trained network.

python -m bagnet_lightning.predict checkpoint=multirun_outputs/SWEEP/RUN/best.ckpt images=FILE_OR_FOLDER
"""

import json
import sys
from pathlib import Path

from omegaconf import DictConfig

from bagnet_lightning.cli import command
from bagnet_lightning.errors import UserError
from bagnet_lightning.files import writable, write_text, writing
from bagnet_lightning.rules import IMAGE_SIZE, PATH, or_null, or_own, whole

RULES = {
    "checkpoint": PATH,
    "images": or_null(PATH),
    "out": or_null(PATH),
    "batch_size": whole(1),
    "size": or_own(IMAGE_SIZE),
}


@command("predict", RULES, data_of_run=True)
def main(config: DictConfig) -> None:
    if (config.images is None) == (config.split is None):
        raise UserError("of what? add images=FILE_OR_FOLDER, or split=test for the unlabelled images of the run's data")
    if config.split not in (None, "test"):
        raise UserError(f"split={config.split}: split must be test; evaluate tells of those with labels")
    from bagnet_lightning.checkpoint import load_trained
    from bagnet_lightning.data.images import find_images
    from bagnet_lightning.data.of_config import data_of_run
    from bagnet_lightning.inference.logits import takes_any_size
    from bagnet_lightning.inference.top_classes import as_csv, as_json, predict_files, submission
    from bagnet_lightning.models.bagnet import BagNet

    trained = load_trained(config.checkpoint)
    size = None if config.size == "own" else config.size or trained.image_size
    if size is not None and isinstance(trained.network, BagNet):
        trained.network.check_size(size, size, f"size={config.size}: images")
    elif size != trained.image_size and not takes_any_size(trained):
        raise UserError(f"size={config.size}: this network takes images of {trained.image_size} px alone; leave it out")
    if config.split:
        files = data_of_run(trained.config, config.get("data")).test_files()
    else:
        files = find_images(Path(config.images))
    out = writable(Path(config.out or Path(config.checkpoint).parent))

    predictions = []
    for one in predict_files(trained, files, size, config.batch_size):
        predictions.append(one)
        if one.error:
            print(f"error: {one.error}", file=sys.stderr)
        else:
            top = ", ".join(f"{trained.class_names[index]} {share:.2f}" for index, share in one.top)
            print(f"{one.file}: {top}")
    unreadable = sum(one.error is not None for one in predictions)
    if unreadable == len(predictions):
        raise UserError("no image could be classified; nothing is written")

    written = {
        "predictions.csv": as_csv(predictions, trained),
        "predictions.json": json.dumps(as_json(predictions, trained), indent=1, ensure_ascii=False) + "\n",
    }
    if config.split and not unreadable:  # a submission with gaps would be refused
        if len({file.name for file in files}) < len(files):
            print("note: files in different folders have one name: there is no submission.txt", file=sys.stderr)
        else:
            written["submission.txt"] = submission(predictions, trained)
    with writing(out):
        for name, text in written.items():
            write_text(out / name, text)
        if config.split and "submission.txt" not in written:
            (out / "submission.txt").unlink(missing_ok=True)  # of an earlier command
    print(f"written: {', '.join(str(out / name) for name in written)}")
    if unreadable:
        raise UserError(f"{unreadable} of {len(predictions)} images could not be classified; the others are done")


if __name__ == "__main__":
    main()
