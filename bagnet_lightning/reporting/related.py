"""The baselines as lines of a table of their own: systems of features, an encoding and a classifier.

Their runs are those of `python -m bagnet_lightning.classical`, "kind": "related" in result.json.
"""

import re
from dataclasses import dataclass

from bagnet_lightning.config import NOT_IN_DIGEST, leaves, within
from bagnet_lightning.reporting.seeds import SeedsLine, mean, over_seeds, values
from bagnet_lightning.reporting.settings import in_words

FEATURES = ("sift", "fast_brief", "orb", "dense_sift", "bagnet")  # in the table's order
_NOT_TOLD = "features.sha256"  # tells two runs apart, but no reader what they are
_NOT_A_SETTING = (*NOT_IN_DIGEST, "seed", "data.seed", "data._target_")


@dataclass(frozen=True, kw_only=True)
class RelatedLine(SeedsLine):
    """Of a system.

    settings: config keys that tell it from the other lines of the same system, and on data where these differ.
    without_keypoints: {"train": n, "val": n} images in which no feature was found, all the same classified.
    explains: what `explain` can show of it, "keypoints", "patches" or None.
    """

    system: str  # in words: "SIFT, 1,000 words, linear SVM"
    features: str
    encoding: str
    classifier: str
    explains: str | None
    feature_seconds: float | None
    model_bytes: float | None
    without_keypoints: dict[str, float]

    @property
    def name(self) -> str:
        return ", ".join(filter(None, [self.system, in_words(self.settings)]))


def related_lines(runs: list[dict]) -> list[RelatedLine]:
    """The lines of all runs of this kind, in FEATURES' order."""
    asked = [_asked(run) for run in runs]
    of_system: dict[str, list[dict]] = {}
    for run, own in zip(runs, asked, strict=True):
        of_system.setdefault(system(run), []).append(own)
    data = {name for name in _differing(asked) if name.startswith("data.")}
    told = {words: data | _differing(configs) for words, configs in of_system.items()}
    groups: dict[tuple, list[dict]] = {}
    settings = {}
    for run, own in zip(runs, asked, strict=True):
        # A run that did not finish is never hidden among those that did.
        key = (run["status"] == "finished" or run["folder"], system(run), repr(sorted(own.items())))
        groups.setdefault(key, []).append(run)
        settings[key] = {name: value for name, value in own.items() if name in told[system(run)] - {_NOT_TOLD}}
    return sorted((_line(group, settings[key]) for key, group in groups.items()), key=_order)


def system(run: dict) -> str:
    """What a run is of, in words."""
    return run.get("system") or "?"


def _asked(run: dict) -> dict[str, object]:
    """The leaves of a run's config that change what it computes, but for its seed."""
    found = leaves(run["config"])
    return {
        name: value for name, value in found.items() if not name.endswith(".label") and not within(name, _NOT_A_SETTING)
    }


def _differing(configs: list[dict]) -> set[str]:
    """The leaves in which `configs` are not all the same; one without leaves is of a run whose config is gone."""
    known = [config for config in configs if config]
    names = {name for config in known for name in config}
    return {name for name in names if len({repr(config.get(name)) for config in known}) > 1}


def _line(runs: list[dict], settings: dict[str, object]) -> RelatedLine:
    first = runs[0]
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
    words = re.split(r"(\d+)", line.name.replace(",", ""))  # text and numbers in turn: 256 words before 1,000
    natural = [int(word) if number % 2 else word for number, word in enumerate(words)]
    return features.index(line.features), line.features, natural, str(line.runs[0]["folder"])
