"""Run folders as train, classical and pretrain leave them, for the tests of what reads them."""

import json
from pathlib import Path

import yaml

TARGETS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "adadelta": "Adadelta"}


def write_run(
    folder: Path,
    model: str = "bagnet17",
    optimizer: str = "adam",
    accuracy: float | None = 0.4,
    *,
    epochs: int = 15,
    done: int | None = None,
    seed: int = 0,
    pretrained: bool | str = False,
    status: str | None = "finished",
    error: str | None = None,
    config: dict | None = None,
    **fields,
) -> Path:
    """config: {"model.width": 0.25}, over the defaults. fields: over those of result.json, absent if status is None."""
    folder.mkdir(parents=True)
    composed = {
        "seed": seed,
        "sweep": "sweep",
        "fresh": False,
        "model": {
            "_target_": f"bagnet_lightning.models.{model.rstrip('0123456789')}.{model}",
            "pretrained": pretrained,
        },
        "optim": {"_target_": f"torch.optim.{TARGETS[optimizer]}", "lr": 1.0 if optimizer == "adadelta" else 0.001},
        "scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR", "step_size": 7},
        "data": {
            "_target_": "bagnet_lightning.data.module.TinyImageNet",
            "name": "tiny_imagenet",
            "classes": None,
            "seed": seed,
            "root": "data",
        },
        "trainer": {"accelerator": "auto", "max_epochs": epochs},
        "paper": None,
    }
    composed["model"] |= {"stem": "imagenet"} if model == "resnet18" else {"width": 1.0, "pad": 0}
    if optimizer == "adadelta":
        composed["scheduler"] = {"_target_": "torch.optim.lr_scheduler.ConstantLR", "factor": 1.0}
    for key, value in (config or {}).items():
        group, _, name = key.rpartition(".")
        (composed[group] if group else composed)[name] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(composed, sort_keys=False))

    done = (epochs if status == "finished" else 0) if done is None else done
    best = accuracy or 0.1
    lines = ["epoch,step,train_loss,train_accuracy,val_loss,val_accuracy,val_top5_accuracy,learning_rate,seconds"]
    for epoch in range(1, done + 1):
        now = best * (1 - 0.7**epoch) / (1 - 0.7**epochs)
        lines.append(f"{epoch},{epoch * 1000},{5.3 - 4 * now:.4f},{now},{5.3 - 3 * now:.4f},{now},{now},0.001,3.5")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")

    result = {
        "format": 1,
        "row": None,
        "model": model,
        "optimizer": optimizer,
        "scheduler": "StepLR",
        "pretrained": pretrained is not False,
        "epochs": epochs,
        "seed": seed,
        "data": composed["data"]["name"],
        "overrides": [f"model={model}", f"optim={optimizer}"],
        "status": status,
    }
    if status == "finished":
        result |= {
            "train_images": 100_000,
            "val_images": 10_000,
            "validated_on": "val",
            "classes": 200,
            "best_val_accuracy": accuracy,
            "best_epoch": epochs,
            "final_val_accuracy": accuracy,
            "val_top5_accuracy": None if accuracy is None else min(1, 1.6 * accuracy),
            "parameters": 14_573_832,
            "receptive_field": int(model.removeprefix("bagnet")) if model.startswith("bagnet") else None,
            "train_seconds": 754.2,
            "images_per_second": 1987.6,
            "device": "NVIDIA H200",
            "precision": "bf16-mixed",
            "versions": {"python": "3.11.7", "torch": "2.9.0", "bagnet_lightning": "0.1.0"},
            "commit": "0123456789ab",
        }
    elif error is not None:
        result["error"] = error
    if status is not None:
        (folder / "result.json").write_text(json.dumps(result | fields))
    return folder


def write_related(
    folder: Path,
    features: str = "sift",
    classifier: str = "linear",
    accuracy: float | None = 0.2,
    *,
    words: int = 1000,
    seed: int = 0,
    status: str | None = "finished",
    config: dict | None = None,
    **fields,
) -> Path:
    """A system of local features, or of a BagNet's patches: "explains" and images without keypoints follow from it."""
    folder.mkdir(parents=True)
    labels = {"sift": "SIFT", "fast_brief": "FAST + BRIEF", "orb": "ORB", "dense_sift": "dense SIFT"}
    system = [labels.get(features, "BagNet-17"), f"{words:,} words", f"{classifier} SVM"]
    composed = {
        "seed": seed,
        "sweep": "sweep",
        "data": {"_target_": "m.TinyImageNet", "name": "tiny_imagenet", "classes": None, "root": "data"},
        "features": {"name": features, "label": system[0]},
        "encoding": {"name": "bow", "label": system[1], "codebook": {"size": words}, "power": 0.5},
        "classifier": {"name": classifier, "label": system[2], "C": 1.0},
    }
    for key, value in (config or {}).items():
        group, _, name = key.rpartition(".")
        composed[group][name] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(composed, sort_keys=False))
    result = {
        "format": 1,
        "kind": "related",
        "system": ", ".join(system),
        "features": features,
        "encoding": "bow",
        "classifier": classifier,
        "model": "bagnet17" if features == "bagnet" else features,
        "optimizer": classifier,
        "seed": seed,
        "data": "tiny_imagenet",
        "overrides": [f"features={features}", f"classifier={classifier}"],
        "status": status,
    }
    if status == "finished":
        dense = features in ("bagnet", "dense_sift")
        result |= {
            "train_images": 100_000,
            "val_images": 10_000,
            "validated_on": "val",
            "classes": 200,
            "best_val_accuracy": accuracy,
            "val_top5_accuracy": None if accuracy is None else min(1, 2 * accuracy),
            "feature_seconds": 312.4,
            "train_seconds": 45.0,
            "model_bytes": 1_600_000,
            "parameters": 200_200,
            "explains": "patches" if features == "bagnet" else "keypoints",
            "without_keypoints": {"train": 0, "val": 0} if dense else {"train": 103, "val": 12},
            "device": "2 CPU cores",
            "versions": {"python": "3.11.7", "torch": "2.9.0", "bagnet_lightning": "0.1.0"},
            "commit": "0123456789ab",
        }
    if status is not None:
        (folder / "result.json").write_text(json.dumps(result | fields))
    return folder
