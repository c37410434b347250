"""The page of the demo: shows an uploaded image's most probable classes and the evidence for one of them."""

from pathlib import Path

import gradio
import numpy as np
import torch
from gradio.utils import get_upload_folder
from PIL import Image
from torch.nn import functional as F

from bagnet_lightning.checkpoint import Trained
from bagnet_lightning.data.augment import normalize
from bagnet_lightning.data.images import load_image
from bagnet_lightning.errors import UserError
from bagnet_lightning.evidence import dense_evidence, patch_evidence
from bagnet_lightning.inference.logits import best_device, predict
from bagnet_lightning.inference.top_classes import TOP
from bagnet_lightning.models.bagnet import BagNet
from bagnet_lightning.presentation.overlays import overlay, scale_end

THEME = gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # no fonts to download
PREDICTED = -1  # choice of the predicted class, whichever it is
MAP_STRIDE = 2  # px between the patches of the map: a quarter of the work, and hardly visible at this size
KEPT_S = 3600  # s after which uploads and maps are deleted
SHOWN_PX = 448  # side of the evidence map on the page


def page(trained: Trained, max_pixels: int) -> gradio.Blocks:
    """Returns the page, to be launched. max_pixels: larger images are refused before they are decoded."""
    name = trained.name
    names = labels(trained)
    exact = isinstance(trained.network, BagNet)

    def answer(path: str | None, index: int) -> tuple[dict | None, Image.Image | None, str]:
        if path is None:
            return None, None, ""
        if Path(get_upload_folder()).resolve() not in Path(path).resolve().parents:  # Gradio trusts what a client says
            raise gradio.Error("this file was not uploaded", print_exception=False)
        try:
            pixels = load(path, trained.image_size, max_pixels)
        except UserError as error:
            raise gradio.Error(str(error), print_exception=False) from error
        return look(trained, names, pixels, index)

    title = f"{name}: which patch spoke for which class"
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(KEPT_S, KEPT_S)) as blocks:
        gradio.Markdown(f"# {name}\n{len(names)} classes. " + _description(trained))
        with gradio.Row():
            with gradio.Column():
                image = gradio.Image(label="Image", sources=["upload", "clipboard"], type="filepath", height=220)
                # By default, Gradio opens and converts the file itself, and fails on a broken one without a message.
                image.preprocess = lambda payload: payload and payload.path
                result = gradio.Label(label="Prediction", num_top_classes=TOP)
            with gradio.Column(visible=exact):
                choices = [("the predicted class", PREDICTED), *((name, index) for index, name in enumerate(names))]
                chosen = gradio.Dropdown(choices, value=PREDICTED, label="Evidence for")
                shown = gradio.Image(label="Evidence", format="png", interactive=False, buttons=["fullscreen"])
                caption = gradio.Markdown()
        gradio.on([image.change, chosen.change], answer, [image, chosen], [result, shown, caption], api_name="explain")
    return blocks


def labels(trained: Trained) -> list[str]:
    """Returns the label of each class: its name, with the identifier if two classes share the name."""
    names = trained.class_names
    return [
        f"{name} ({identifier})" if names.count(name) > 1 else name
        for name, identifier in zip(names, trained.classes, strict=True)
    ]


def load(path: str, size: int, max_pixels: int) -> np.ndarray:
    """Returns the uploaded image, (size, size, 3) uint8. Raises UserError, without the path on this machine."""
    name = Path(path).name
    try:
        with Image.open(path) as image:
            width, height = image.size
    except Exception:  # load_image reports what is wrong
        width = height = 0
    if width * height > max_pixels:
        raise UserError(f"{name} has {width} x {height} px; {max_pixels / 10**6:g} megapixels are allowed")
    try:
        return load_image(path, size)
    except UserError as error:
        raise UserError(str(error).replace(str(path), name)) from error


@torch.inference_mode()
def look(trained: Trained, names: list[str], pixels: np.ndarray, index: int) -> tuple[dict, Image.Image | None, str]:
    """Returns probabilities by class and, for a BagNet, evidence for class `index` over the image and its caption."""
    images = torch.tensor(pixels)[None]
    logits = predict(trained, images)[0]
    probabilities = dict(zip(names, logits.softmax(0).tolist(), strict=True))
    if not isinstance(trained.network, BagNet):
        return probabilities, None, ""
    index = logits.argmax().item() if index == PREDICTED else index
    image = normalize(images.to(best_device()), trained.mean, trained.std)
    evidence = dense_evidence(trained.network, image, [index], stride=MAP_STRIDE)[0, :, :, 0].cpu()  # (h, w)
    end = scale_end([patch_evidence(trained.network, image, [index]).cpu()])  # as in drawing.exact_limit
    caption = (
        f"Red patches speak for **{names[index]}**, blue ones against it: the logit of the patch around each pixel, "
        f"from {-end:.1f} to {end:.1f}. The image's logit, the mean of the network's own patches', is "
        f"{logits[index].item():.2f}."
    )
    sizes = [MAP_STRIDE * (positions - 1) + 1 for positions in evidence.shape]  # from the first to the last one
    smooth = F.interpolate(evidence[None, None], sizes, mode="bilinear", align_corners=True)
    height, width = pixels.shape[:2]
    smooth = F.pad(smooth, (0, width - sizes[1], 0, height - sizes[0]), mode="replicate")[0, 0].numpy()
    shown = Image.fromarray(overlay(pixels, smooth, end)).resize((SHOWN_PX, SHOWN_PX), Image.Resampling.NEAREST)
    return probabilities, shown, caption


def _description(trained: Trained) -> str:
    size = f"Images are scaled and cut to {trained.image_size} x {trained.image_size} px, as in training."
    if not isinstance(trained.network, BagNet):
        return f"{size} Only BagNets have exact evidence: this one has its prediction alone."
    return (
        f"{size} Its decision is the mean of what {trained.network.receptive_field} px patches say; the map shows them."
    )
