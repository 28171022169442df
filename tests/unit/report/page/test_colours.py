"""The colours of arms can be told apart by readers with any kind of colour vision, and seen on their page."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lorascope.report.page.canvas import METHOD_COLOURS, METHOD_COLOURS_DARK

# Machado, Oliveira and Fernandes (2009), severity 1.
VISIONS = {
    "usual": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
}  # fmt: skip
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = np.array([0.95047, 1.0, 1.08883])


def linear(colour: str) -> np.ndarray:
    """Linear RGB of "#rrggbb"."""
    values = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB."""
    ratio = TO_XYZ @ np.clip(rgb, 0, 1) / WHITE
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def least_distance(colours: tuple[str, ...], vision: np.ndarray) -> float:
    """The least difference (CIE 1976) of two colours as someone with this vision sees them; 2.3 is just noticeable."""
    seen = [lab(vision @ linear(colour)) for colour in colours]
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))


@pytest.mark.parametrize("palette", [METHOD_COLOURS, METHOD_COLOURS_DARK], ids=["light", "dark"])
@pytest.mark.parametrize("vision", VISIONS)
def test_arms_can_be_told_apart_by_every_reader(palette, vision):
    assert least_distance(palette[:6], VISIONS[vision]) > 20
    assert least_distance(palette, VISIONS[vision]) > 15


def test_the_measure_sees_colours_that_some_readers_confuse():
    assert least_distance(("#d55e00", "#8f6b00"), VISIONS["protanopia"]) < 5 < 30 < least_distance(
        ("#d55e00", "#8f6b00"), VISIONS["usual"]
    )  # fmt: skip


@pytest.mark.parametrize(("palette", "page"), [(METHOD_COLOURS, "#ffffff"), (METHOD_COLOURS_DARK, "#101418")])
def test_colours_have_enough_contrast_with_their_page(palette, page):
    def luminance(colour: str) -> float:
        return float(TO_XYZ[1] @ linear(colour))

    for colour in palette:
        low, high = sorted([luminance(colour), luminance(page)])
        assert (high + 0.05) / (low + 0.05) >= 3, colour
