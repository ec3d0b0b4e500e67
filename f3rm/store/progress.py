"""Progress bars of long steps: images per second and time left, on rich's global console."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Result = TypeVar("Result")


class RateColumn(ProgressColumn):
    """Shows images, or other units, per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """Returns the rate of a task, or a dash before anything is done."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.2f} {self._unit}/s" if speed else f"- {self._unit}/s")


def progress_bar(*, show: bool, unit: str = "images") -> Progress:
    """Returns a bar that is drawn only if ``show``; use it as a context manager."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(unit),
        TimeRemainingColumn(),
        disable=not show,
    )


def track(
    results: Iterable[Result], *, total: int, label: str, show: bool, unit: str = "images"
) -> Iterator[Result]:
    """Yields ``results`` while a bar counts them.

    Args:
        results: Counted as they are yielded.
        total: Their number.
        label: Text before the bar.
        show: Whether the bar is drawn.
        unit: Plural noun for the results.
    """
    with progress_bar(show=show, unit=unit) as bar:
        task = bar.add_task(label, total=total)
        for result in results:
            yield result
            bar.advance(task)
