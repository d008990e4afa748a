"""How far training is: a bar on a terminal, else a line now and then."""

import sys
import time
from typing import Any

LINE_EVERY = 10.0


class Progress:
    """Steps done of all, loss, accuracy, examples per second and time left, on standard error.

    `tqdm`'s bar on a terminal; elsewhere one line every ten seconds. With `enabled=False` only `write` shows anything.
    """

    def __init__(self, steps: int, start: int, enabled: bool, *, stream: Any = None, every: float = LINE_EVERY):
        self.steps, self.every = steps, every
        self.stream = sys.stderr if stream is None else stream
        self.shown = enabled
        self.last = time.monotonic()
        self.first: tuple[int, float] | None = None  # the first step compiles, and says nothing of those that follow
        self.bar = None
        if enabled and self.stream.isatty():
            try:
                from tqdm import tqdm
            except ImportError:  # lines will do
                return
            self.bar = tqdm(total=steps, initial=start, file=self.stream, unit="step", dynamic_ncols=True, leave=True)

    def update(self, step: int, values: dict[str, float]) -> None:
        """Show `values` (of loss, accuracy, examples_per_second those that are there) after `step` steps."""
        if not self.shown:
            return
        if self.bar is not None:
            self.bar.set_postfix_str(describe(values), refresh=False)
            self.bar.update(step - self.bar.n)
            return
        now = time.monotonic()
        if self.first is None:
            self.first = (step, now)
        if now - self.last >= self.every or step == self.steps:
            self.last = now
            text = f"step {step}/{self.steps}  {describe(values)}"
            if step > self.first[0]:
                left = (now - self.first[1]) / (step - self.first[0]) * (self.steps - step)
                text += f"  {clock(left)} left"
            print(text, file=self.stream, flush=True)

    def write(self, text: str) -> None:
        """A message on a line of its own."""
        if self.bar is not None:
            self.bar.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def describe(values: dict[str, float]) -> str:
    parts = []
    if "loss" in values:
        parts.append(f"loss {values['loss']:.4g}")
    if "accuracy" in values:
        parts.append(f"accuracy {values['accuracy']:.4f}")
    if "examples_per_second" in values:
        parts.append(f"{values['examples_per_second']:.4g} examples/s")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: `1:02:03`."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
