"""Prints what this machine would train on, and what would go wrong with a sweep here.

python -m bagnet_lightning.doctor trainer=t4
"""

import sys

from omegaconf import DictConfig

from bagnet_lightning.cli import command
from bagnet_lightning.config import plain
from bagnet_lightning.rules import RULES


@command("doctor", RULES)
def main(config: DictConfig) -> None:
    from bagnet_lightning.machine.diagnosis import facts, problems

    for name, fact in facts(plain(config)).items():
        print(f"{name:<10} {fact}")
    found = problems(plain(config))
    for problem in found:
        print(f"{'error' if problem.fatal else 'warning'}: {problem.text}")
    if any(problem.fatal for problem in found):
        sys.exit(1)
    print("a sweep can run here")


if __name__ == "__main__":
    main()
