"""Measured speeds are read by other threads while they are learned."""

from __future__ import annotations

import threading

from hetero.placement.cost import Curve


def test_points_are_whole_whenever_they_are_read():
    """Lists that were replaced one after the other made a status fail once (zip of unlike lengths)."""
    curve, done, wrong = Curve(), threading.Event(), []

    def read() -> None:
        while not done.is_set():
            points = curve.points
            if len(points.rows) != len(points.seconds) or list(points.seconds) != sorted(points.seconds):
                wrong.append(points)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for n in range(3000):
        curve.add(1 + n % 97, 0.001 * (1 + n % 13))
    done.set()
    for reader in readers:
        reader.join()
    assert not wrong and len(curve.points.rows) == 97
