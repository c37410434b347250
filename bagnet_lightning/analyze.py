"""Measures what a network's decisions depend on, and how well attribution maps show it: numbers and figures.

python -m bagnet_lightning.analyze checkpoint=multirun_outputs/SWEEP/RUN/best.ckpt compare=ANOTHER/best.ckpt
"""

import json
from pathlib import Path

from omegaconf import DictConfig

from bagnet_lightning.cli import command
from bagnet_lightning.errors import UserError
from bagnet_lightning.files import writable, write_bytes, write_text, writing
from bagnet_lightning.names import told_apart
from bagnet_lightning.rules import PATH, or_null, whole

RULES = {
    "checkpoint": PATH,
    "compare": or_null(PATH),
    "out": or_null(PATH),
    "count": or_null(whole(1)),
    "map_count": whole(1),
    "tile": whole(1),
    "seed": whole(0),
}


@command("analyze", RULES, data_of_run=True)
def main(config: DictConfig) -> None:
    import torch

    from bagnet_lightning.analysis.figures import FIGURES, draw_patches
    from bagnet_lightning.analysis.measure import Sample, measure
    from bagnet_lightning.analysis.page import as_text, page, summary
    from bagnet_lightning.checkpoint import load_trained
    from bagnet_lightning.data.of_config import data_of_run
    from bagnet_lightning.presentation.plots import png

    paths = [str(path) for path in (config.checkpoint, config.compare) if path is not None]
    all_trained = [load_trained(path) for path in paths]
    first = all_trained[0]
    if unshared := sorted(set(first.classes) ^ set(all_trained[-1].classes)):
        raise UserError(
            f"{paths[0]} and {paths[1]} do not know the same classes ({unshared[0]!r} is not in both); compare runs "
            "of the same data.classes"
        )
    if first.image_size != all_trained[-1].image_size:
        sizes = " and ".join(f"{trained.image_size} px" for trained in all_trained)
        raise UserError(f"{' and '.join(paths)} were trained on images of {sizes}; compare runs of the same size")
    out = writable(Path(config.out or Path(config.checkpoint).parent / "analysis"))

    data = data_of_run(first.config, config.get("data"))
    data.setup()
    if config.tile >= data.store.side:
        raise UserError(f"tile={config.tile}: the images have {data.store.side} px; choose a smaller tile")
    for trained in all_trained if config.split == "val" else ():
        data.check_unseen(trained.config, trained.classes)
    images = data.labelled_for(first.classes, config.split)
    sampled = torch.randperm(len(images), generator=torch.Generator().manual_seed(config.seed))[: config.count]
    split, chosen = images.split, images.chosen[sampled]

    networks, names = [], told_apart([trained.name for trained in all_trained], paths)
    for path, trained, name in zip(paths, all_trained, names, strict=True):
        labels = data.labelled_for(trained.classes, config.split).labels[sampled]
        sample = Sample(split.images[chosen], labels, split.boxes[chosen], chosen)
        measured = measure(trained, sample, config.map_count, config.seed, config.tile)
        networks.append({"name": name, "checkpoint": path, **measured})
    analysis = {
        "data": data.name,
        "split": config.split,
        "classes": len(first.classes),
        "class_names": dict(zip(first.classes, first.class_names, strict=True)),
        "seed": config.seed,
        "networks": networks,
    }

    figures = {
        f"patches_{number}": draw_patches(network, analysis["class_names"], split.images.numpy())
        for number, network in enumerate(networks, start=1)
        if "informative" in network
    }
    figures |= {name: figure for name, draw in FIGURES.items() if (figure := draw(networks))}
    pictures = {name: png(figure) for name, figure in figures.items()}
    with writing(out):
        write_text(out / "analysis.json", json.dumps(analysis, indent=1) + "\n")
        for name, picture in pictures.items():
            write_bytes(out / f"{name}.png", picture)
        write_text(out / "analysis.html", page(analysis, pictures))

    print(as_text(summary(networks)))
    for note in dict.fromkeys(note for network in networks for note in network["notes"]):
        print(f"note: {note}")
    print(f"{networks[0]['images']:,} images, maps and masks on {networks[0]['map_images']:,}; ± one standard error")
    print(f"written: {out / 'analysis.html'}, {out / 'analysis.json'}")


if __name__ == "__main__":
    main()
