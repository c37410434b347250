"""The baselines as lines of a table of their own: related systems of features, an encoding and a classifier.

Their runs are those of `python -m bagnet_lightning.classical`, "kind": "related" in result.json.
"""

import re
from dataclasses import dataclass

from bagnet_lightning.config import NOT_IN_DIGEST, is_seed, leaves, within
from bagnet_lightning.reporting.seeds import SeedsLine, mean, over_seeds, repetitions, values
from bagnet_lightning.reporting.settings import format_settings, weights_name

FEATURES = ("sift", "fast_brief", "orb", "dense_sift", "bagnet")  # in the table's order
_CHECKPOINT = "features.checkpoint"
_NOT_SHOWN = "features.sha256"  # distinguishes two runs, but a digest tells a reader nothing


@dataclass(frozen=True, kw_only=True)
class RelatedLine(SeedsLine):
    """A line of the related systems' table.

    settings: config keys that distinguish it from the other lines of its system, and data.* keys that differ at all.
    without_keypoints: {"train": n, "val": n} images in which no feature was found; they are classified all the same.
    explains: what `explain` can show for it, "keypoints", "patches" or None.
    """

    system: str  # "SIFT, 1000 words, linear SVM"
    features: str
    encoding: str
    classifier: str
    explains: str | None
    feature_seconds: float | None
    model_bytes: float | None
    without_keypoints: dict[str, float]

    @property
    def name(self) -> str:
        return ", ".join(filter(None, [self.system, format_settings(self.settings)]))


def related_lines(runs: list[dict]) -> list[RelatedLine]:
    """Returns the lines of related systems' runs, in the order of FEATURES."""
    configs = [_settings(run) for run in runs]
    configs_by_system: dict[str, list[dict]] = {}
    for run, config in zip(runs, configs, strict=True):
        configs_by_system.setdefault(system(run), []).append(config)
    data = {name for name in _differing(configs) if name.startswith("data.")}
    shown = {name: data | _differing(group) for name, group in configs_by_system.items()}
    groups = repetitions(runs, lambda run: (system(run), _settings(run).get(_CHECKPOINT)))
    return sorted((_line(group, shown[system(group[0])]) for group in groups), key=_order)


def system(run: dict) -> str:
    """Returns the name of a run's system, "?" if it is unknown."""
    return run.get("system") or "?"


def _settings(run: dict) -> dict[str, object]:
    """Returns the leaves of a run's config that change what it computes, except for seed and fold."""
    return {
        name: value
        for name, value in leaves(run["config"]).items()
        if not (name.endswith(".label") or is_seed(name) or within(name, (*NOT_IN_DIGEST, "data._target_")))
    }


def _differing(configs: list[dict]) -> set[str]:
    """Returns the leaves in which `configs` differ; empty ones, of runs whose config is missing, are ignored."""
    known = [config for config in configs if config]
    names = {name for config in known for name in config}
    return {name for name in names if len({repr(config.get(name)) for config in known}) > 1}


def _line(runs: list[dict], shown: set[str]) -> RelatedLine:
    first = runs[0]
    settings = {name: value for name, value in _settings(first).items() if name in shown - {_NOT_SHOWN}}
    if isinstance(checkpoint := settings.get(_CHECKPOINT), str):
        settings[_CHECKPOINT] = weights_name(checkpoint)
    counts = [run.get("without_keypoints") or {} for run in runs]
    return RelatedLine(
        **over_seeds(runs),
        settings=settings,
        system=system(first),
        features=first.get("features") or "?",
        encoding=first.get("encoding") or "?",
        classifier=first.get("classifier") or "?",
        explains=first.get("explains"),
        feature_seconds=mean(values(runs, "feature_seconds")),
        model_bytes=mean(values(runs, "model_bytes")),
        without_keypoints={split: mean(values(counts, split)) or 0 for split in ("train", "val")},
    )


def _order(line: RelatedLine) -> tuple:
    features = [*FEATURES, line.features]
    parts = re.split(r"(\d+)", line.name.replace(",", ""))  # text and numbers in turn: 256 words come before 1,000
    natural = [int(part) if i % 2 else part for i, part in enumerate(parts)]
    return features.index(line.features), line.features, natural, str(line.runs[0]["folder"])
