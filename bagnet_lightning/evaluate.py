"""Measures top-1, top-5, per-class accuracy and confusion of a trained network.

python -m bagnet_lightning.evaluate checkpoint=multirun_outputs/SWEEP/RUN/best.ckpt
"""

import csv
import json
from io import StringIO
from pathlib import Path

from omegaconf import DictConfig

from bagnet_lightning.cli import command
from bagnet_lightning.config import plain
from bagnet_lightning.files import writable, write_text, writing
from bagnet_lightning.rules import PATH, or_null


@command("evaluate", {"checkpoint": PATH, "out": or_null(PATH)}, data_of_run=True)
def main(config: DictConfig) -> None:
    from bagnet_lightning.checkpoint import load_trained
    from bagnet_lightning.data.of_config import data_of_run
    from bagnet_lightning.inference import predict
    from bagnet_lightning.predictions import confusion, most_confused

    trained = load_trained(config.checkpoint)
    out = writable(Path(config.out or Path(config.checkpoint).parent))
    requested = config.get("data")
    data = data_of_run(trained.config, requested)
    data.setup()
    if config.split == "val":
        data.check_unseen(trained.config, trained.classes)
    images = data.labelled_for(trained.classes, config.split)
    labels = images.labels
    logits = predict(trained, images.split.images, images.chosen)  # (N, classes)

    matrix = confusion(labels.numpy(), logits.argmax(1).numpy(), len(trained.classes))  # (true, predicted)
    top5 = logits.topk(min(5, len(matrix))).indices.eq(labels[:, None]).any(1)
    by_class = [
        {"class": trained.classes[i], "name": trained.class_names[i], "accuracy": matrix[i, i] / matrix[i].sum()}
        for i in labels.unique().tolist()
    ]
    evaluation = {
        "checkpoint": str(config.checkpoint),
        "data": data.name,
        "data_settings": plain(config.data) if requested else {},  # those given, instead of the run's own
        "split": config.split,
        "images": len(labels),
        "accuracy": matrix.trace() / len(labels),
        "top5_accuracy": top5.float().mean().item(),
        "balanced_accuracy": sum(entry["accuracy"] for entry in by_class) / len(by_class),  # each class counts the same
        "accuracy_by_class": by_class,
        "most_confused": [
            {
                "true": trained.class_names[true],
                "predicted": trained.class_names[predicted],
                "images": matrix[true, predicted].item(),
            }
            for true, predicted in most_confused(matrix, 10)
        ],
    }

    other_data = f"_{data.name}" if requested else ""
    other_split = f"_{config.split}" if config.split != "val" else ""
    evaluation_file = out / f"evaluation{other_data}{other_split}.json"
    confusion_file = out / f"confusion{other_data}{other_split}.csv"
    table = StringIO(newline="")
    rows = zip(trained.classes, matrix.tolist(), strict=True)
    csv.writer(table, lineterminator="\n").writerows(
        [["true \\ predicted", *trained.classes], *([name, *row] for name, row in rows)]
    )
    with writing(out):
        write_text(confusion_file, table.getvalue())
        write_text(evaluation_file, json.dumps(evaluation, indent=2) + "\n")

    shares = {"top-1": "accuracy", "top-5": "top5_accuracy", "balanced": "balanced_accuracy"}
    print("  ".join(f"{label} {evaluation[key]:.4f}" for label, key in shares.items()), f" on {len(labels):,} images")
    ranked = sorted(by_class, key=lambda entry: -entry["accuracy"])
    groups = (("best:  ", ranked[:5]), ("worst: ", ranked[:4:-1][:5]))
    for heading, entries in groups if len(ranked) > 5 else (("by class: ", ranked),):
        print(heading + ", ".join(f"{entry['name']} {entry['accuracy']:.2f}" for entry in entries))
    for pair in evaluation["most_confused"][:5]:
        print(f"{pair['images']:>4} {pair['true']} taken for {pair['predicted']}")
    print(f"written: {evaluation_file}, {confusion_file}")


if __name__ == "__main__":
    main()
