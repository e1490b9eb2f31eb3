"""A listener that keeps what every step said."""

from __future__ import annotations

from xopt.runtime.progress import Listener, Step

__all__ = ["Recorder"]


class Recorder(Listener):
    """Keeps the steps that were closed, and the titles of those around each."""

    def __init__(self) -> None:
        super().__init__()
        self.closed_steps: list[Step] = []
        self.stacks: set[tuple[str, ...]] = set()

    def opened(self, step: Step) -> None:
        super().opened(step)
        self.stacks.add(tuple(each.title for each in self.steps))

    def closed(self, step: Step) -> None:
        super().closed(step)
        self.closed_steps.append(step)

    def titled(self, title: str) -> list[Step]:
        return [step for step in self.closed_steps if step.title == title]
