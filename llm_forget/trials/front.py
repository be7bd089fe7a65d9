"""The Pareto front of a search, and the area that it dominates. Numbers only."""

from __future__ import annotations

from collections.abc import Sequence

Point = tuple[float, float]


def front(points: Sequence[Point]) -> list[int]:
    """The places of the points that no other dominates, by the first objective; both are minimised.

    Of equal points the first is kept.
    """
    order = sorted(range(len(points)), key=lambda place: (*points[place], place))
    found: list[int] = []
    for place in order:
        if not found or points[place][1] < points[found[-1]][1]:
            found.append(place)
    return found


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """The area that points dominate within a reference point; 0 if none is below it in both objectives.

    (1, 2) and (2, 1) dominate 3 of the square to (3, 3).
    """
    inside = [point for point in points if point[0] < reference[0] and point[1] < reference[1]]
    area, top = 0.0, reference[1]
    for place in front(inside):
        x, y = inside[place]
        area += (reference[0] - x) * (top - y)
        top = y
    return area


def dominators(point: Point, others: Sequence[Point]) -> int:
    """How many of the others are at least as good in both objectives, and better in one."""
    return sum(one[0] <= point[0] and one[1] <= point[1] and one != point for one in others)
