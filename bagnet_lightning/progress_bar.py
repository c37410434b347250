"""A progress bar for long work, on a terminal."""

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, ProgressColumn


@contextlib.contextmanager
def progress_bar(description: str, total: int | None, *columns: ProgressColumn) -> Iterator[Callable[[int], None]]:
    """Yields a function that advances a bar on the terminal; without a terminal on stderr there is no bar."""
    columns = columns or (MofNCompleteColumn(),)
    console = Console(stderr=True)
    bar = Progress(*Progress.get_default_columns(), *columns, console=console, disable=not sys.stderr.isatty())
    with bar:
        task = bar.add_task(description, total=total)
        yield lambda steps: bar.advance(task, steps)
