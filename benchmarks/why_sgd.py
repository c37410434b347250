"""Prints a table of the runs of a sweep that shows why BagNets did not learn by SGD in the paper.

    python benchmarks/why_sgd.py multirun_outputs/why_sgd
    python benchmarks/why_sgd.py RUN/last.ckpt    accuracies with batch statistics in the stem alone, and everywhere

A run whose train accuracy is as low as its validation accuracy did not learn: its steps were too short. One that has
learned but fails validation until the images' own batch statistics replace the running ones was evaluated with running
statistics that had not converged. So the table holds the three accuracies of each run's last.ckpt, and how far SGD
could go: the sum over its steps of learning rate / (1 - momentum).
"""

import sys
from pathlib import Path

import torch

from bagnet_lightning.checkpoint import load_trained
from bagnet_lightning.data.of_config import data_of_run
from bagnet_lightning.inference.logits import predict
from bagnet_lightning.names import model_name, optimizer_name
from bagnet_lightning.results import read_metrics, read_runs

HEADING = (
    "model", "optimizer", "momentum", "learning rate", "decayed every", "stem momentum", "steps", "sum of lr / (1 - m)",
    "train accuracy", "validation", "with batch statistics",
)  # fmt: skip


def with_batch_statistics(checkpoint: Path, stem_alone: bool = False) -> float:
    """Returns the validation accuracy with batch norms using the statistics of 250 validation images at a time.

    stem_alone: the first batch norm only, instead of all.
    """
    trained = load_trained(checkpoint)
    data = data_of_run(trained.config, None)
    data.setup()
    images = data.val_images
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))  # they are sorted by class
    for name, module in trained.network.named_modules():
        module.training = isinstance(module, torch.nn.BatchNorm2d) and (name == "bn1" or not stem_alone)
    logits = predict(trained, images.split.images, images.chosen[order])
    return (logits.argmax(1) == images.labels[order]).float().mean().item()


def reach(config: dict, steps: int) -> float:
    """Returns the sum over all steps of learning rate / (1 - momentum), for SGD with StepLR."""
    optimizer, schedule = config["optim"], config["scheduler"]
    periods = range(steps)
    if schedule["interval"] == "epoch":
        per_epoch = steps // config["trainer"]["max_epochs"]
        periods = (step // per_epoch for step in periods)
    learning_rates = (optimizer["lr"] * schedule["gamma"] ** (period // schedule["step_size"]) for period in periods)
    return sum(learning_rates) / (1 - optimizer["momentum"])


def line(run: dict) -> list[str]:
    config, last, last_checkpoint = run["config"], read_metrics(run["folder"])[-1], run["folder"] / "last.ckpt"
    optimizer, schedule, sgd = config["optim"], config["scheduler"], run["optimizer"] == "sgd"
    return [
        model_name(run["model"]),
        optimizer_name(run["optimizer"]),
        f"{optimizer['momentum']:g}" if sgd else "",
        f"{optimizer['lr']:g}",
        f"{schedule['step_size']} {schedule['interval']}s" if "step_size" in schedule else "",
        f"{config['model']['stem_momentum']:g}" if "stem_momentum" in config["model"] else "",
        f"{last['step']:,}",
        f"{reach(config, last['step']):.3g}" if sgd else "",
        f"{last['train_accuracy']:.3f}",
        f"{last['val_accuracy']:.3f}",
        f"{with_batch_statistics(last_checkpoint):.3f}" if last_checkpoint.exists() else "",  # results travel without
    ]


def main(folder: str) -> None:
    if folder.endswith(".ckpt"):
        print(f"{with_batch_statistics(Path(folder), stem_alone=True):.4f} {with_batch_statistics(Path(folder)):.4f}")
        return
    lines = [line(run) for run in read_runs(folder) if run["status"] == "finished"]
    for cells in [HEADING, ["---"] * len(HEADING), *sorted(lines)]:
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
