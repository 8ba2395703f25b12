"""Curved manifolds within a subspace, a row of MANIFOLDS each: their points, and what is tangent and normal to them.

A manifold is told by coordinates of its hull, the least subspace that holds it, which is placed in R^d as any other
subspace is. So what is orthogonal to the hull never learns, whatever the manifold (F20 in docs/theory.md).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from subspace_adv.geometry import Subspace
from subspace_adv.rows import Rows


class Form(NamedTuple):
    """What settings say of a manifold."""

    subspace_dim: int  # of spheres: k
    radii: tuple[float, ...]  # of circles and spheres
    frequencies: int  # of a curve: K
    even: bool  # whether the training points of circles and curves are spaced evenly, and not at random


class Manifold(NamedTuple):
    """A row of `MANIFOLDS`: all functions of NumPy."""

    reads: tuple[str, ...]  # fields of [data] that not every distribution reads
    hull_dim: Callable[[Form], int]  # k, dimension of the hull
    tangent_dim: Callable[[int], int]  # k → t, dimension of the manifold
    # (form, generator, radius of each point (n,), even) → points (n, k); the first n are those of any larger number,
    # unless they are spaced evenly.
    points: Callable[[Form, np.random.Generator, np.ndarray, bool], np.ndarray]
    tangent: Callable[[np.ndarray], np.ndarray]  # points (n, k) → orthonormal bases (n, k, t)


def frames(manifold: Manifold, points: np.ndarray) -> Subspace:
    """Of a manifold at some of its points (n, k): what is tangent to it, (n, k, t), and normal, (n, k, k − t)."""
    tangent = manifold.tangent(points)
    rotation, _ = np.linalg.qr(tangent, mode="complete")
    return Subspace(tangent, rotation[..., tangent.shape[-1] :])  # pyright: ignore[reportArgumentType]


def _angles(generator: np.random.Generator, radius: np.ndarray, even: bool) -> np.ndarray:
    """One for each point, uniform on the circle; if even, those of one radius divide it into equal parts."""
    if not even:
        return 2 * np.pi * generator.random(len(radius))
    angles = np.empty(len(radius))
    for one in np.unique(radius):
        (places,) = np.nonzero(radius == one)
        angles[places] = 2 * np.pi * np.arange(len(places)) / len(places)
    return angles


def _circles(form: Form, generator: np.random.Generator, radius: np.ndarray, even: bool) -> np.ndarray:
    del form
    angles = _angles(generator, radius, even)
    return radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _spheres(form: Form, generator: np.random.Generator, radius: np.ndarray, even: bool) -> np.ndarray:
    del even
    directions = generator.standard_normal((len(radius), form.subspace_dim))
    return directions * (radius / np.linalg.norm(directions, axis=1))[:, None]


def _curve(form: Form, generator: np.random.Generator, radius: np.ndarray, even: bool) -> np.ndarray:
    phases = np.arange(1, form.frequencies + 1) * _angles(generator, np.zeros_like(radius), even)[:, None]
    waves = np.stack([np.cos(phases), np.sin(phases)], axis=2)
    return waves.reshape(len(radius), -1) / np.sqrt(form.frequencies)


def _across_radius(points: np.ndarray) -> np.ndarray:
    """What is orthogonal to each point (n, k): all axes but the first, reflected as the first is to the point."""
    direction = points / np.linalg.norm(points, axis=1, keepdims=True)
    mirror = direction.copy()
    mirror[:, 0] += np.where(direction[:, 0] < 0, -1, 1)  # never 0
    mirror /= np.linalg.norm(mirror, axis=1, keepdims=True)
    return (np.eye(points.shape[1]) - 2 * mirror[:, :, None] * mirror[:, None])[:, :, 1:]


def _along_curve(points: np.ndarray) -> np.ndarray:
    """Its derivative, of length 1: that of (cos jθ, sin jθ) is j·(−sin jθ, cos jθ)."""
    cosines, sines = points[:, ::2], points[:, 1::2]
    order = np.arange(1, cosines.shape[1] + 1)
    derivative = np.stack([-order * sines, order * cosines], axis=2).reshape(len(points), -1, 1)
    return derivative / np.linalg.norm(derivative, axis=1, keepdims=True)


MANIFOLDS: Rows[Manifold] = Rows(
    "distribution",
    {
        # Around 0 in a plane.
        "circles": Manifold(("radii", "spacing"), lambda form: 2, lambda k: 1, _circles, _across_radius),
        # Around 0 in R^k, points uniform.
        "spheres": Manifold(
            ("radii", "subspace_dim"), lambda form: form.subspace_dim, lambda k: k - 1, _spheres, _across_radius
        ),
        # θ ↦ (cos θ, sin θ, …, cos Kθ, sin Kθ)/√K, on the sphere of radius 1.
        "curve": Manifold(
            ("frequencies", "spacing", "labels"),
            lambda form: 2 * form.frequencies,
            lambda k: 1,
            _curve,
            _along_curve,
        ),
    },
)
