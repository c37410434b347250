"""The description of a model in a folder for a hub: config.json as timm reads it, and the card, README.md."""

import json
from pathlib import Path

from bagnet_lightning.checkpoint import NETWORKS, Trained
from bagnet_lightning.config import NOT_IN_DIGEST, within
from bagnet_lightning.exporting.portable import describe
from bagnet_lightning.models.bagnet import BagNet
from bagnet_lightning.models.of_config import TIMM
from bagnet_lightning.names import model_name, optimizer_name
from bagnet_lightning.results import read_run

TAGS = ["image-classification", "bagnet_lightning"]
PAPER = "https://openreview.net/forum?id=SkfMWhAqYQ"


def write_card(folder: Path, trained: Trained, checkpoint: Path) -> list[str]:
    """Writes README.md, with the metrics of the result.json beside best.ckpt, and config.json for timm. Returns notes.

    There is no config.json for a network that timm cannot build.
    """
    result, notes = read_run(checkpoint.parent), []
    if checkpoint.name != "best.ckpt" or result["status"] != "finished":
        notes = [f"{checkpoint} is not the best.ckpt of a finished run: the card has no measured numbers"]
        result = None
    if _is_in_timm(trained):
        (folder / "config.json").write_text(json.dumps(_timm_config(trained), indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_card(trained, result), encoding="utf-8")
    return notes


def in_the_way(folder: Path) -> Path | None:
    """Returns a file in `folder` that an export would replace, if no earlier export has written it."""
    card = folder / "README.md"
    if card.is_file() and f"tags: {json.dumps(TAGS)}" in card.read_text(encoding="utf-8", errors="replace"):
        return None
    written = (card, folder / "config.json", folder / "model.safetensors")
    return next((path for path in written if path.exists()), None)


def _is_ours(trained: Trained) -> bool:
    return trained.config["model"]["_target_"] in NETWORKS


def _is_timms(trained: Trained) -> bool:
    return trained.config["model"]["_target_"] == TIMM


def _is_in_timm(trained: Trained) -> bool:
    return _is_timms(trained) or (_is_ours(trained) and trained.config["model"].get("stem", "imagenet") == "imagenet")


def _timm_config(trained: Trained) -> dict:
    """Returns the config.json for `timm.create_model("local-dir:FOLDER", pretrained=True)`.

    BagNets need `import bagnet_lightning.timm_models` before that call.
    """
    about, network = describe(trained, normalises=False), trained.network
    options = {k: v for k, v in about["config"]["model"].items() if k not in ("_target_", "model_name", "pretrained")}
    if _is_timms(trained):
        architecture, features, known = about["model"].partition(".")[0], network.num_features, network.pretrained_cfg
        if known.get("fixed_input_size"):  # of which timm knows its own alone
            options.setdefault("img_size", known["input_size"][-1])
    else:
        architecture = "bagnet17" if about["model"] == "BagNet" else about["model"]  # its patches: by model_args
        features, known = network.fc.in_features, {"first_conv": "conv1", "classifier": "fc"}
        options = options if isinstance(network, BagNet) else {}
    return {
        "architecture": architecture,
        "num_classes": len(trained.classes),
        "num_features": features,
        "label_names": trained.classes,
        "label_descriptions": dict(zip(trained.classes, trained.class_names, strict=True)),
        "model_args": options,
        "pretrained_cfg": {
            "num_classes": len(trained.classes),
            "input_size": [3, trained.image_size, trained.image_size],
            "mean": trained.mean,
            "std": trained.std,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "first_conv": known["first_conv"],
            "classifier": known["classifier"],
        },
        "bagnet_lightning": about,
    }


def _card(trained: Trained, result: dict | None) -> str:
    about = describe(trained, normalises=False)
    name = model_name(about["model"])
    data = about["config"]["data"]["name"]
    names = ", ".join(trained.class_names[:8])
    names += f", … ({len(trained.class_names)} in all)" if len(trained.class_names) > 8 else ""
    front = {"pipeline_tag": "image-classification", "tags": TAGS}
    if result:
        metrics = [{"type": "accuracy", "value": result["best_val_accuracy"], "name": "top-1"}]
        dataset = {"name": data, "type": data, "split": result.get("validated_on", "val")}
        task = {"type": "image-classification"}
        front["model-index"] = [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}]
    lines = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in front.items()),
        "---",
        "",
        f"# {name} on {data}",
        "",
    ]
    if isinstance(trained.network, BagNet):
        lines += [
            f"A [BagNet]({PAPER}): an image's logits are the mean of the logits of its {about['receptive_field']} x "
            f"{about['receptive_field']} px patches, one every {about['stride']} px, so that each patch's share in a "
            "decision is known exactly.",
            "",
        ]
    lines += [f"Classes: {names}.", "", *_measured(result), "## Use", "", *_use(trained)]
    return "\n".join(lines) + "\n"


def _measured(result: dict | None) -> list[str]:
    if not result:
        return []

    def known(template: str, *keys: str) -> str | None:
        values = {key: result.get(key) for key in keys}
        return None if None in values.values() else template.format(**values)

    versions = result.get("versions") or {}
    overrides = [override for override in result.get("overrides") or [] if _to_be_published(override)]
    speed = ("train_seconds", "images_per_second")
    rows = {
        "top-1, best epoch": known("{best_val_accuracy:.4f}", "best_val_accuracy"),
        "top-5, best epoch": known("{val_top5_accuracy:.4f}", "val_top5_accuracy"),
        "measured on": known("{val_images:,} images of {validated_on}", "val_images", "validated_on"),
        "trained on": known("{train_images:,} images, epochs: {epochs_done}", "train_images", "epochs_done"),
        "optimizer": optimizer_name(result["optimizer"]),
        "runs": known("1 (seed {seed})", "seed"),
        "parameters": known("{parameters:,}", "parameters"),
        "training": known("{train_seconds:,.0f} s, {images_per_second:,.0f} images/s", *speed),
        "device": known("{device}, {precision}", "device", "precision"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "commit": known("{commit}", "commit"),
        "asked": f"`{' '.join(overrides)}`",
    }
    table = [f"| {key} | {value.replace('|', chr(92) + '|')} |" for key, value in rows.items() if value]
    return ["## Measured", "", "| | |", "|---|---|", *table, ""]


def _to_be_published(override: str) -> bool:
    """Whether the card shows `override`: not if it may hold a path of the user's or does not change the training."""
    key, _, value = override.lstrip("+~").partition("=")
    return not within(key, NOT_IN_DIGEST) and (
        key not in ("model.pretrained", "model.checkpoint_path") or value == "true"
    )


def _use(trained: Trained) -> list[str]:
    size = trained.image_size
    lines = ["With bagnet_lightning:", "", "    bagnet-predict checkpoint=FOLDER images=PHOTO.jpg"]
    if isinstance(trained.network, BagNet):
        lines += ["    bagnet-explain checkpoint=FOLDER images=PHOTO.jpg"]
    if _is_in_timm(trained):
        register = "" if _is_timms(trained) else "import bagnet_lightning.timm_models  # registers the BagNets\n    "
        lines += ["", "or with timm:", "", f"    {register}import timm"]
        lines += ['    network = timm.create_model("local-dir:FOLDER", pretrained=True)']
    elif not _is_ours(trained):
        needed = trained.config["model"]["_target_"]
        lines += ["", f"with its code on PYTHONPATH and BAGNET_NETWORKS={needed} in the environment."]
    mean, std = (", ".join(f"{value:.4f}" for value in values) for values in (trained.mean, trained.std))
    about = f"Images are RGB from 0 to 1, {size} px a side in training, less the mean ({mean}) and divided by ({std})."
    return [*lines, "", about]
