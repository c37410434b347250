"""BagNets in timm: importing this module adds bagnet9, bagnet17 and bagnet33 to its registry.

    import bagnet_lightning.timm_models
    import timm
    network = timm.create_model("bagnet17", num_classes=10)

These features of timm's networks work: num_classes=0, in_chans, drop_rate, global_pool="avg" or "", features_only=True,
pretrained=True (the public ImageNet weights), forward_features, forward_head, forward_intermediates, reset_classifier,
and "local-dir:FOLDER" for a folder of `export format=hub`. So do patch_logits and the functions of evidence.py.
Other poolings are refused: logits would no longer be a mean of patches' logits.
"""

from timm.models import build_model_with_cfg, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional as F

from bagnet_lightning.models.bagnet import WIDE_STAGES, BagNet
from bagnet_lightning.models.pretrained import PUBLIC_WEIGHTS, state_dict_of

default_cfgs = {
    name: {
        "url": PUBLIC_WEIGHTS[name],
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "conv1",
        "classifier": "fc",
        "origin_url": "https://github.com/wielandbrendel/bag-of-local-features-models",
        "paper_name": "Approximating CNNs with Bag-of-local-Features models works surprisingly well on ImageNet",
    }
    for name in WIDE_STAGES
}


class TimmBagNet(BagNet):
    """A BagNet with the methods that timm requires of its networks. `options`: arguments of BagNet."""

    def __init__(
        self,
        wide_stages: tuple[int, int, int, int],
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        **options,
    ):
        super().__init__(wide_stages, max(num_classes, 1), **options)
        if in_chans != 3:
            self.conv1 = nn.Conv2d(in_chans, self.conv1.out_channels, 1, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.drop_rate = drop_rate
        self.num_features = self.head_hidden_size = self.fc.in_features
        self.feature_info = [
            {"num_chs": stage[-1].conv3.out_channels, "reduction": reduction, "module": f"layer{number}"}
            for number, (stage, reduction) in enumerate(zip(self.stages, (2, 4, 8, 8), strict=True), start=1)
        ]
        self.global_pool = ""
        self.reset_classifier(num_classes, global_pool)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the head by a new one for `num_classes`; 0: none, the network returns features."""
        pool = self.global_pool if global_pool is None else global_pool
        if pool not in ("avg", ""):
            raise ValueError(f'global_pool is "avg" or "", not {pool!r}: a BagNet\'s logits are a mean over patches')
        self.global_pool, self.num_classes = pool, num_classes
        like = self.conv2.weight
        self.fc = nn.Identity()
        if num_classes:
            self.fc = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)

    def forward_features(self, images: Tensor) -> Tensor:
        """Computes a feature vector per patch: (B, in_chans, H, W) -> (B, num_features, h, w)."""
        return self.features(images)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Pools and classifies: (B, num_features, h, w) -> (B, num_classes); with global_pool="" neither."""
        if self.global_pool == "avg":
            features = features.mean((2, 3))
        if self.drop_rate:
            features = F.dropout(features, self.drop_rate, self.training)
        return features if pre_logits or not self.global_pool else self.fc(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def forward_intermediates(
        self,
        images: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Returns the outputs of the stages `indices` (the last n, or a list), as in timm, at strides 2, 4, 8, 8."""
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is NCHW, not {output_fmt}")
        requested, last = feature_take_indices(len(self.feature_info), indices)
        x, outputs = self.stem(self.padded(images)), []
        for number, stage in enumerate(self.stages):
            if stop_early and number > last:
                break
            x = stage(x)
            if number in requested:
                outputs.append(x)
        return outputs if intermediates_only else (x, outputs)


@register_model
def bagnet9(pretrained: bool = False, **options) -> nn.Module:
    """Builds BagNet-9: 9 x 9 px patches."""
    return _build("bagnet9", pretrained, options)


@register_model
def bagnet17(pretrained: bool = False, **options) -> nn.Module:
    """Builds BagNet-17: 17 x 17 px patches."""
    return _build("bagnet17", pretrained, options)


@register_model
def bagnet33(pretrained: bool = False, **options) -> nn.Module:
    """Builds BagNet-33: 33 x 33 px patches."""
    return _build("bagnet33", pretrained, options)


def _build(name: str, pretrained: bool, options: dict) -> nn.Module:
    features = {"feature_cls": "getter", "out_indices": (0, 1, 2, 3)}
    options = {"wide_stages": WIDE_STAGES[name], **options}

    def without_prefixes(weights: dict, network: nn.Module) -> dict[str, Tensor]:
        return state_dict_of(weights, name)  # the public ones are in a checkpoint, with keys under "module."

    return build_model_with_cfg(
        TimmBagNet, name, pretrained, feature_cfg=features, pretrained_filter_fn=without_prefixes, **options
    )
