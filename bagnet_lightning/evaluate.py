"""Top-1, top-5, per-class accuracy and confusion of a trained network.

python -m bagnet_lightning.evaluate checkpoint=multirun_outputs/SWEEP/RUN/best.ckpt
"""

import json
from pathlib import Path

from omegaconf import DictConfig

from bagnet_lightning.cli import command
from bagnet_lightning.config import data_of_run
from bagnet_lightning.errors import UserError
from bagnet_lightning.files import write_text


@command("evaluate", data_of_run=True)
def main(config: DictConfig) -> None:
    from hydra.utils import instantiate
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    from bagnet_lightning.checkpoint import load_trained
    from bagnet_lightning.inference import predict

    trained = load_trained(config.checkpoint)
    data = instantiate(data_of_run(trained.config, config.get("data")), _partial_=True, _convert_="all")()
    data.setup()
    images = data.labelled_for(trained.classes, config.split)
    labels = images.labels
    logits = predict(trained, images.split.images[images.chosen])  # (N, classes)

    count = len(trained.classes)
    confusion = multiclass_confusion_matrix(logits.argmax(1), labels, count)  # (true, predicted)
    top5 = logits.topk(min(5, count)).indices.eq(labels[:, None]).any(1)
    per_class = {
        trained.class_names[i]: confusion[i, i].item() / max(1, confusion[i].sum().item())
        for i in labels.unique().tolist()
    }
    mistakes = confusion.clone().fill_diagonal_(0)
    worst = mistakes.flatten().topk(min(10, count)).indices.tolist()
    evaluation = {
        "checkpoint": str(config.checkpoint),
        "data": data.name,
        "split": config.split,
        "images": len(labels),
        "accuracy": confusion.trace().item() / len(labels),
        "top5_accuracy": top5.float().mean().item(),
        "accuracy_by_class": per_class,
        "most_confused": [
            {
                "true": trained.class_names[i // count],
                "predicted": trained.class_names[i % count],
                "images": mistakes.flatten()[i].item(),
            }
            for i in worst
            if mistakes.flatten()[i] > 0
        ],
    }

    out = Path(config.out or Path(config.checkpoint).parent)
    header = ",".join(["true \\ predicted", *trained.classes])
    rows = [",".join([name, *map(str, row)]) for name, row in zip(trained.classes, confusion.tolist(), strict=True)]
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "confusion.csv", "\n".join([header, *rows]) + "\n")
        write_text(out / "evaluation.json", json.dumps(evaluation, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write to {out} ({error.strerror}); choose another folder with out=FOLDER") from error

    print(f"top-1 {evaluation['accuracy']:.4f}  top-5 {evaluation['top5_accuracy']:.4f}  on {len(labels):,} images")
    ranked = sorted(per_class.items(), key=lambda item: -item[1])
    print("best:  " + ", ".join(f"{name} {accuracy:.2f}" for name, accuracy in ranked[:5]))
    print("worst: " + ", ".join(f"{name} {accuracy:.2f}" for name, accuracy in ranked[-5:]))
    for pair in evaluation["most_confused"][:5]:
        print(f"{pair['images']:>4} {pair['true']} taken for {pair['predicted']}")
    print(f"written: {out / 'evaluation.json'}, {out / 'confusion.csv'}")


if __name__ == "__main__":
    main()
