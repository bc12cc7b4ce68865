"""How well the search of `bench history` finds the changes that people marked in public series, beside Apache Otava's.

    python -m benchmarks.gate.annotated TCPD

The folder is a clone of github.com/alan-turing-institute/TCPD, or one of its form: `annotations.json`, and series as
`datasets/**/NAME.json`. Otava takes part where the package apache-otava is installed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.gate.changes import change_points

#: A series to the first runs after changes.
Search = Callable[[npt.NDArray[np.float64]], list[int]]
#: Runs that a found change may be away from a marked one.
MARGIN = 5


def otava() -> dict[str, Search]:
    """Apache Otava's search with its own defaults; nothing where it is not installed."""
    try:
        from otava.analysis import compute_change_points
    except ImportError:
        return {}
    return {"otava": lambda series: [int(one.index) for one in compute_change_points(series.tolist())[0]]}


def hits(marked: Iterable[int], found: Iterable[int]) -> int:
    """How many marked changes have a found one within the margin; no found one counts twice."""
    left, count = sorted(found), 0
    for mark in sorted(marked):
        near = [one for one in left if abs(one - mark) <= MARGIN]
        if near:
            left.remove(min(near, key=lambda one: abs(one - mark)))
            count += 1
    return count


def score(marks: list[set[int]], found: Iterable[int]) -> tuple[float, float]:
    """Precision and recall (van den Burg and Williams 2020, arXiv:2003.06222): a change is right if any person marked
    it; recall is the mean over people. The beginning of a series counts as a change that all have found.

    Args:
        marks: Of each person.
        found: By a search.
    """
    all_found = {0, *found}
    people = [{0, *one} for one in marks]
    right = hits(set().union(*people), all_found)
    return right / len(all_found), sum(hits(one, all_found) / len(one) for one in people) / len(people)


def series_of(folder: Path) -> Iterator[tuple[str, npt.NDArray[np.float64], list[set[int]]]]:
    """Name, values and marks of each series of one dimension whose values are positive and complete."""
    people = json.loads((folder / "annotations.json").read_text())
    for path in sorted(folder.glob("datasets/**/*.json")):
        document = json.loads(path.read_text())
        if document.get("n_dim") != 1 or path.stem not in people:
            continue
        values = np.array(
            [np.nan if one is None else one for one in document["series"][0]["raw"]], dtype=float
        )
        if np.isfinite(values).all() and (values > 0).all():
            yield path.stem, values, [set(one) for one in people[path.stem].values()]


def main() -> None:
    """Print precision, recall and F1 of each search: means over series."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    found = list(series_of(parser.parse_args().folder))
    print(
        f"{len(found)} series of {min(len(v) for _, v, _ in found)} to {max(len(v) for _, v, _ in found)} values"
    )
    ours: Search = lambda series: [one.index for one in change_points(series, "lower")]  # noqa: E731
    for name, search in {"nothing": lambda _: [], "bench history": ours, **otava()}.items():
        scores = np.array([score(marks, search(values)) for _, values, marks in found])
        f1 = 2 * scores.prod(axis=1) / scores.sum(axis=1)
        print(
            f"{name}: precision {scores[:, 0].mean():.3f}, recall {scores[:, 1].mean():.3f}, F1 {f1.mean():.3f}"
        )


if __name__ == "__main__":
    main()
