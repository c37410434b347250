"""Exact evidence of a sweep's best BagNet on the validation images that its run kept; needs torch, but no data set."""

from pathlib import Path

from bagnet_lightning.explanation.drawing import exact_limit
from bagnet_lightning.explanation.inputs import Picture
from bagnet_lightning.explanation.maps import explain, load_model
from bagnet_lightning.predictions import Predictions
from bagnet_lightning.presentation.overlays import overlay
from bagnet_lightning.presentation.standalone import png_uri

COUNT = 6


def gallery(checkpoint: Path, predictions: Predictions) -> list[dict]:
    """Returns [{"image", "label", "right", "maps": [{"class", "logit", "png"}]}], PNGs as data URIs.

    Maps are for the predicted class, and for the true one if it differs. Raises UserError if the checkpoint cannot
    be read.
    """
    model = load_model(checkpoint, exact_only=True)
    names = model.trained.class_names
    items = []
    for pixels, label in zip(predictions.examples[:COUNT], predictions.example_labels[:COUNT].tolist(), strict=True):
        (explanation,) = explain([model], Picture("", pixels, label), None, approximate=False)
        limit = exact_limit([explanation])
        items.append(
            {
                "image": png_uri(pixels),
                "label": names[label],
                "right": explanation.predicted == label,
                "maps": [
                    {
                        "class": names[index],
                        "logit": explanation.logits[index].item(),
                        "png": png_uri(overlay(pixels, explanation.dense[..., index].numpy(), limit)),
                    }
                    for index in explanation.shown
                ],
            }
        )
    return items
