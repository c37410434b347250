"""Measures accuracy, area under the ROC curve and confusion of a trained network, and keeps the score of every image.

python -m bagnet_lightning.evaluate checkpoint=multirun_outputs/SWEEP/RUN/best.ckpt
"""

import json
from io import BytesIO
from pathlib import Path

from omegaconf import DictConfig

from bagnet_lightning.cli import command
from bagnet_lightning.config import plain
from bagnet_lightning.errors import UserError
from bagnet_lightning.files import csv_of, writable, write_bytes, write_text, writing
from bagnet_lightning.rules import PATH, or_null


@command("evaluate", {"checkpoint": PATH, "images": or_null(PATH), "out": or_null(PATH)}, data_of_run=True)
def main(config: DictConfig) -> None:
    requested = config.get("data")
    import numpy as np

    from bagnet_lightning.checkpoint import load_trained
    from bagnet_lightning.data.image_folder import labelled_images
    from bagnet_lightning.data.of_config import data_of_run, is_argument
    from bagnet_lightning.inference.evaluation import evaluate
    from bagnet_lightning.inference.logits import predict

    if config.images is not None and (requested or is_argument("split")):
        raise UserError("images=FOLDER is instead of data and of a split of them: leave one of them out")
    trained = load_trained(config.checkpoint)
    out = writable(Path(config.out or Path(config.checkpoint).parent))
    if config.images is None:
        data = data_of_run(trained.config, requested)
        data.setup()
        if config.split == "val":
            data.check_unseen(trained.config, trained.classes)
        images = data.labelled_for(trained.classes, config.split)
        names, labels = data.names(images), images.labels
        logits = predict(trained, images.split.images, images.chosen)  # (N, classes)
        about = {"data": data.name, "data_settings": plain(requested) if requested else {}, "split": config.split}
        suffix = (f"_{data.name}" if requested else "") + (f"_{config.split}" if config.split != "val" else "")
    else:
        folder = Path(config.images)
        names, labels, pixels = labelled_images(folder, trained.classes, trained.class_names, trained.image_size)
        logits = predict(trained, pixels)
        about = {"data": str(folder), "data_settings": {}, "split": None}
        suffix = "_".join(["_images", *folder.resolve().parts[1:][-2:]])

    stem = Path(config.checkpoint).stem
    suffix = suffix if stem == "best" else f"_{stem}{suffix}"
    evaluation = evaluate(labels, logits, trained.classes, trained.class_names)
    counts = zip(trained.classes, evaluation.pop("confusion").tolist(), strict=True)
    table = csv_of([["true \\ predicted", *trained.classes], *([name, *row] for name, row in counts)])
    scores = BytesIO()
    np.savez_compressed(scores, names=names, labels=labels, logits=logits, classes=trained.classes)
    evaluation_file = out / f"evaluation{suffix}.json"
    confusion_file, scores_file = out / f"confusion{suffix}.csv", out / f"scores{suffix}.npz"
    with writing(out):
        write_bytes(scores_file, scores.getvalue())
        write_text(confusion_file, table)
        whole = {"checkpoint": str(config.checkpoint), **about, **evaluation}
        write_text(evaluation_file, json.dumps(whole, indent=2) + "\n")

    shares = {"top-1": "accuracy", "top-5": "top5_accuracy", "balanced": "balanced_accuracy", "AUC": "auc"}
    known = {key: f"{label} {evaluation[key]:.4f}" for label, key in shares.items() if evaluation[key] is not None}
    for key in ("accuracy", "balanced_accuracy"):
        known[key] += f" ± {evaluation[f'{key}_standard_error']:.4f}"
    print("  ".join(known.values()), f" on {len(labels):,} images")
    ranked = sorted(evaluation["accuracy_by_class"], key=lambda entry: -entry["accuracy"])
    groups = (("best:  ", ranked[:5]), ("worst: ", ranked[:4:-1][:5]))
    for heading, entries in groups if len(ranked) > 10 else (("by class: ", ranked),):
        print(heading + ", ".join(f"{entry['name']} {entry['accuracy']:.2f}" for entry in entries))
    for pair in evaluation["most_confused"][:5]:
        print(f"{pair['images']:>4} {pair['true']} taken for {pair['predicted']}")
    print(f"written: {evaluation_file}, {confusion_file}, {scores_file}")


if __name__ == "__main__":
    main()
