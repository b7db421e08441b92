"""The report of a GPU run: one JSON file that is whole after every item, whatever happens to the next one.

A lent machine may be taken away and a kernel may bring the process down, so nothing waits for the end.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Wrong(Exception):
    """A number that is further from the truth than rounding explains."""


class Report:
    """Named items, each of them a figure or the reason why there is none.

    Args:
        path: JSON file, written anew after every item.
        budget_s: seconds after which no further item starts.
        head: what the figures were measured on.
    """

    def __init__(self, path: Path, budget_s: float, head: dict[str, Any]) -> None:
        self.path, self.budget_s = path, budget_s
        self.began = time.monotonic()
        self.content: dict[str, Any] = {**head, "budget_s": budget_s, "seconds": 0.0, "wrong": [], "items": {}}
        path.parent.mkdir(parents=True, exist_ok=True)
        self.save()

    @property
    def items(self) -> dict[str, Any]:
        """What was measured, by name, in order."""
        items: dict[str, Any] = self.content["items"]
        return items

    @property
    def failed(self) -> list[str]:
        """Names of the items that were started and gave no figure."""
        return [name for name, value in self.items.items() if "failed" in value]

    def put(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Run one item and keep its result, or its error: no exception passes but those that end the process."""
        passed = time.monotonic() - self.began
        if passed > self.budget_s:
            result: dict[str, Any] = {"left_out": f"{self.budget_s:g} s were spent"}
        else:
            try:
                result = run()
            except torch.OutOfMemoryError:
                result = {"failed": "out of memory"}
            except Wrong as error:
                result = {"failed": str(error)}
                self.content["wrong"].append(name)
            except Exception as error:  # whatever a compiler, driver or library throws must not cost the other items
                result = {"failed": f"{type(error).__name__}: {error}"[:2000], "where": traceback.format_exc()[-3000:]}
            result["took_s"] = round(time.monotonic() - self.began - passed, 2)
        self.items[name] = result
        self.save()
        print(f"{name}: {short(result)}", file=sys.stderr, flush=True)
        return result

    def save(self) -> None:
        """A plain write: the folder may be one that only collects files, and the next item writes again."""
        self.content["seconds"] = round(time.monotonic() - self.began, 1)
        self.path.write_text(json.dumps(self.content, indent=1, default=str))

    def table(self) -> str:
        """Every item on a line."""
        return "\n".join(f"{name:58} {short(value)}" for name, value in self.items.items())


def short(value: dict[str, Any]) -> str:
    """The numbers of an item on one line; of nested ones and long texts only the start."""
    parts = []
    for key, entry in value.items():
        if key in ("where", "took_s"):
            continue
        text = f"{entry:.4g}" if isinstance(entry, float) else str(entry)
        parts.append(f"{key} {text}" if len(text) < 160 else f"{key} {text[:160]}…")
    return ", ".join(parts)
