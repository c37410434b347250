"""The base of all commands: Hydra composes the configuration, and a user's mistake is one line, not a traceback."""

import errno
import faulthandler
import functools
import io
import logging
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

import hydra
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException, InstantiationException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from bagnet_lightning import config as _  # noqa: F401  registers the resolvers that conf/ uses
from bagnet_lightning.errors import UserError
from bagnet_lightning.machine.memory import keep_freed_memory
from bagnet_lightning.paths import CONF
from bagnet_lightning.rules import Rule, check

# Keys whose values are taken as they are typed: in those of the first line a comma separates values.
_PATHS = ("checkpoint", "runs", "data.root", "data.cache", "cache")
_TEXTS = ("compare", "images", "out", "class")
DISK_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE),
    *(errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
}


def command(
    config_name: str, rules: dict[str, Rule] | None = None, data_of_run: bool = False, lists: tuple[str, ...] = ()
) -> Callable:
    """Decorates `task(config)` as a command, configured by conf/`config_name`.yaml and key=value arguments.

    rules: for the configuration, where `task` does not check it.
    data_of_run: the data are those of a finished run, and single `data.key=value` arguments change them.
    lists: keys for which KEY=A,B is short for KEY=[A,B], where Hydra alone would take it for a sweep.
    A UserError or a mistake in the arguments ends the command with one line on stderr and exit code 1; Ctrl-C with 130.
    """

    def decorate(task: Callable[[DictConfig], object]) -> Callable[[], None]:
        @functools.wraps(task)
        def checked(config: DictConfig) -> object:
            if rules:
                check(config, rules)
            return task(config)

        @functools.wraps(task)
        def run(config: DictConfig) -> object:
            if sys.__stderr__:
                faulthandler.enable(sys.__stderr__)  # where a library or a driver crashed
            keep_freed_memory()
            with _mistakes_in_one_line():
                return checked(config)

        @functools.wraps(checked)
        def main() -> None:
            _check_form(sys.argv[1:])
            # argparse takes settings only without options between them, and users write them in any order.
            sys.argv[1:] = sorted(map(_quoted_for_hydra, sys.argv[1:]), key=_is_setting)
            if data_of_run:  # its keys are known only when the run's config has been read
                sys.argv = [f"++{argument}" if argument.startswith("data.") else argument for argument in sys.argv]
            for key in lists:
                sys.argv = [re.sub(rf"^({key})=([^\[\]]*,[^\[\]]*)$", r"\1=[\2]", argument) for argument in sys.argv]
            if isinstance(sys.stdout, io.TextIOWrapper):  # its encoding may lack letters of class names
                sys.stdout.reconfigure(errors="backslashreplace")
            logging.raiseExceptions = False  # no traceback for each line that a full disk refuses
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises exceptions instead of printing them
            with _mistakes_in_one_line():
                hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(run)()

        return main

    return decorate


@contextmanager
def _mistakes_in_one_line() -> Iterator[None]:
    try:
        yield
        sys.stdout.flush()
    except UserError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:
        output = select.poll()
        output.register(1, 0)  # reports errors only
        if not output.poll(0):  # it was another pipe
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader of the output has ended, as `head` does
        sys.exit(128 + signal.SIGPIPE)
    except InstantiationException:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {_one_line(error)}")
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        sys.exit(f"error: {error.filename or 'a file'}: {error.strerror}; fix that and give the same command again")


def _check_form(arguments: list[str]) -> None:
    """Ends the command with an error if an argument is neither an option of Hydra's nor KEY=VALUE."""
    options = get_args_parser()._option_string_actions
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if argument.startswith("--") and argument.partition("=")[0] not in options:
            sys.exit(f"error: there is no option {argument}; settings are KEY=VALUE (trainer.max_epochs=3), see --help")
        if not before.startswith("-") and not argument.startswith(("-", "~")) and "=" not in argument:
            sys.exit(f"error: {argument} has no key; arguments are KEY=VALUE (checkpoint=PATH), see --help")


def _is_setting(argument: str) -> bool:
    """Whether an argument is a setting, not an option or an option's value."""
    return argument.startswith("~") or (not argument.startswith("-") and "=" in argument)


def _quoted_for_hydra(argument: str) -> str:
    """Rewrites an argument for Hydra: expands ~/x, in runs=~/x,~/y too, and quotes paths like 2024, ü.jpg, a (1).png.

    Quotes a number as the choice of a group, too: names of choices are text.
    """
    key, separator, value = argument.partition("=")
    value = re.sub(r"(?:^|(?<=[,\[]))~(?=[/,\]]|$)", lambda home: os.path.expanduser(home[0]), value)
    unquoted = r"[a-z_/.][\w/.-]*|['\"[$].*" + ("" if key in _TEXTS else "|.*,.*")  # [A,B], A,B
    if key in _PATHS + _TEXTS and not re.fullmatch(unquoted, value, re.ASCII | re.IGNORECASE):
        value = "'" + value.replace("'", r"\'") + "'"
    if value.isdecimal() and (CONF / key).is_dir():
        value = f"'{value}'"
    return f"{key}{separator}{value}"


def _one_line(error: Exception) -> str:
    """Returns a message of Hydra or OmegaConf in one line, with the choices for a misspelt key or choice."""
    cause = error.__cause__ or error
    if isinstance(cause, MissingMandatoryValue):
        return f"{cause.full_key} is needed: add {cause.full_key}=..."
    parent, key = getattr(cause, "parent_node", None), getattr(cause, "key", None)
    if isinstance(parent, DictConfig) and key is not None and "not in struct" in str(cause):
        choices = sorted(str(choice) for choice in parent if choice != "hydra" and not str(choice).startswith("_"))
        groups = OmegaConf.to_container(parent)
        below = [
            f"{choice}.{name}"
            for choice in choices
            if isinstance(groups[choice], dict)
            for name in groups[choice]
            if key in (name, name.rpartition("_")[2])
        ]
        close = below or get_close_matches(str(key), choices, n=1)
        guess = f"did you mean {close[0]}? " if close else ""
        full_key = getattr(cause, "full_key", key)
        group = str(full_key).partition(".")[0]
        if {"-m", "--multirun"} & {*sys.argv} and any(re.match(rf"{group}=[\w/]+,", argument) for argument in sys.argv):
            guess += f"(in a sweep over {group}: if all of its choices have it, write ++{full_key}=...) "
        if not choices:
            guess += f"(a new key is written +{full_key}=...) "
        if str(full_key).startswith("trainer."):
            guess += f"(Lightning's other arguments: +{full_key}=...) "
        return f"there is no key {full_key}; {guess}choices: {', '.join(choices)}"
    if isinstance(error, OverrideParseException) and "Ambiguous" not in str(error):
        key, _, value = error.override.partition("=")
        value = value.replace("'", r"\'")
        return f"{error.override} cannot be read; put the value in quotes of its own: \"{key}='{value}'\""
    if "Ambiguous value for argument" in str(error):
        return f"{str(error).splitlines()[0].strip()}: for a run of each add -m; for a list write KEY=[A,B]"
    other = re.match(r"Could not override '(.+?)'", str(error))
    if other and (CONF / other[1]).is_dir():  # a group of another command
        return f"this command has no key {other[1]}; --help lists those that it has"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    start = next((i for i, line in enumerate(lines) if line.startswith("Available options")), None)
    if start is not None:
        stop = next((i for i, line in enumerate(lines) if line.startswith("Config search path")), len(lines))
        return f"{lines[0].rstrip('.')}; choices: {', '.join(lines[start + 1 : stop])}"
    return "; ".join(lines[:2])
