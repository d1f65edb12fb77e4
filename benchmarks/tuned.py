"""What is tuned alike for both sides: the learning rate, and how strong colours change, each as a factor.

`tuning.py` chooses by held-out images of CIFAR-10; the rows "NAME tuned" of `accuracy.py` use what it chose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import results

import akssl_core
from akssl_core.settings import dotted

FILE = Path(__file__).parent / "results" / "tuning.json"
TUNED = " tuned"  # behind the name of a system
WIDTHS = ("brightness", "contrast", "saturation")  # of factors around 1; hue around 0
COLOURS = (*WIDTHS, "hue")


class Factors(NamedTuple):
    """By what a recipe's or an example's own values are multiplied."""

    rate: float = 1.0
    colours: float = 1.0


RATES, PALER = (1 / 3, 1.0, 3.0), 0.5


def best(rows: Sequence[Mapping[str, Any]], system: str) -> Factors:
    """Those with the highest k-NN accuracy of held-out images.

    Raises:
        LookupError: the system has no rows.
    """
    mine = [row for row in rows if row["system"] == system]
    if not mine:
        raise LookupError(f"{system} is not among the rows of {FILE.name}: run tuning.py first")
    of = max(mine, key=lambda row: row["k-NN"])
    return Factors(of["rate"], of["colours"])


def chosen(system: str) -> Factors:
    """What `tuning.py` found for "NAME tuned"; 1 for every other system."""
    name = system.removesuffix(TUNED)
    return Factors() if name == system else best(known(), name)


def known() -> list[dict[str, Any]]:
    """The rows that `tuning.py` has written."""
    return results.known(FILE)


def changed(method: str, factors: Factors, **keywords: Any) -> dict[str, Any]:
    """Settings of a run of ours, where a factor is not 1."""
    if factors == Factors():
        return {}
    own = akssl_core.explain(method, **keywords).settings
    by = {f"optimizer.{name}": factors.rate for name in ("lr", "lr.start", "lr.end")}
    by |= {path: factors.colours for path in own if path.startswith("augmentation.") and path.endswith(COLOURS)}
    return dotted([(path, own[path] * factor) for path, factor in by.items() if own.get(path)])


def painted(make: Callable[..., Any], colours: float) -> Callable[..., Any]:
    """The maker of a peer's example with weaker or stronger changes of colour."""

    def example(*arguments: Any) -> Any:
        made = make(*arguments)
        found = list(jitters(made.transform, set())) if colours != 1 else []
        assert found or colours == 1, f"{make.__name__}: no ColorJitter in its transform"
        for jitter in found:
            for name, middle in {**dict.fromkeys(WIDTHS, 1.0), "hue": 0.0}.items():
                if (bounds := getattr(jitter, name)) is not None:
                    setattr(jitter, name, tuple(middle + colours * (bound - middle) for bound in bounds))
        return made

    return example


def jitters(of: Any, seen: set[int]) -> Iterator[Any]:
    """Every `ColorJitter` inside a transform, once."""
    if id(of) in seen:
        return
    seen.add(id(of))
    if type(of).__name__ == "ColorJitter" and hasattr(of, "hue"):
        yield of
        return
    inside = of.values() if isinstance(of, dict) else of if isinstance(of, list | tuple) else vars(of).values()
    for one in inside:
        if isinstance(one, dict | list | tuple) or hasattr(one, "__dict__"):
            yield from jitters(one, seen)
