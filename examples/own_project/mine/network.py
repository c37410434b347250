"""A network: any module that is made with num_classes, from images (B, 3, H, W) to logits (B, num_classes)."""

from torch import Tensor, nn


class ConvMixer(nn.Sequential):
    """ConvMixer (Trockman & Kolter 2022). patch: px; kernel: patches."""

    def __init__(self, num_classes: int, width: int, depth: int, patch: int, kernel: int):
        super().__init__(
            nn.Conv2d(3, width, patch, stride=patch),
            nn.GELU(),
            nn.BatchNorm2d(width),
            *(Mixing(width, kernel) for _ in range(depth)),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.fc = nn.Linear(width, num_classes)


class Mixing(nn.Module):
    def __init__(self, width: int, kernel: int):
        super().__init__()
        across = nn.Conv2d(width, width, kernel, groups=width, padding="same")
        self.across = nn.Sequential(across, nn.GELU(), nn.BatchNorm2d(width))
        self.within = nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.within(x + self.across(x))
