"""The host's crops and resizes, against the laws that the paper's preprocessing follows."""

import numpy as np
import pytest
from scipy import stats

from testbed.data import crops


def windows(height, width, draws=10_000, seed=0):
    rng = np.random.default_rng(seed)
    return np.array([crops.random_window(rng, height, width) for _ in range(draws)])


def area_law(height, width):
    """The distribution function of a crop's share of the area, by integrating over aspects.

    Given the aspect a (uniform on [0.75, 1.33]), the height is uniform between that of 5 % of the area
    and the largest that fits; the area is a h^2. Whole pixels are neglected.
    """
    aspects = np.linspace(0.75, 1.33, 2001)
    low = np.sqrt(0.05 * height * width / aspects)
    high = np.minimum(np.minimum(np.sqrt(height * width / aspects), width / aspects), height)

    def law(share):
        h = np.sqrt(np.asarray(share)[..., None] * height * width / aspects)
        return np.mean(np.clip((h - low) / (high - low), 0, 1), axis=-1)

    return law


@pytest.mark.parametrize(("height", "width"), [(2000, 2000), (1600, 2400), (2400, 1300)])
def test_areas_and_aspects_follow_tensorflows_law(height, width):
    """Kolmogorov-Smirnov; at 2000 pixels a step of one pixel is far below its resolution."""
    _, _, h, w = windows(height, width).T
    assert stats.kstest(h * w / (height * width), area_law(height, width)).pvalue > 0.01
    assert stats.kstest(w / h, stats.uniform(0.75, 0.58).cdf).pvalue > 0.01


@pytest.mark.parametrize(
    ("height", "width", "median"), [(256, 256, 0.33), (200, 301, 0.27), (333, 187, 0.23)]
)
def test_median_areas_are_those_observed_in_tensorflow(height, width, median):
    """Torchvision's sampler has 0.46, 0.37 and 0.32 here."""
    _, _, h, w = windows(height, width).T
    assert np.median(h * w) / (height * width) == pytest.approx(median, abs=0.01)


@pytest.mark.parametrize(("height", "width"), [(256, 256), (200, 301), (37, 91), (2, 2), (1, 9)])
def test_windows_are_inside_the_image_and_never_reach_the_last_offset(height, width):
    top, left, h, w = windows(height, width, 2000).T
    assert np.all((top >= 0) & (left >= 0) & (h > 0) & (w > 0))
    assert np.all((top + h <= height) & (left + w <= width))
    assert np.all((top < height - h) | (h == height))
    assert np.all((left < width - w) | (w == width))


def test_offsets_are_uniform():
    top, left, h, w = windows(300, 400).T
    for offset, room in ((top, 300 - h), (left, 400 - w)):
        free = room > 50
        assert stats.kstest((offset[free] + 0.5) / room[free], stats.uniform.cdf).pvalue > 0.01


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", [16, 50, 128])
def test_resize_is_bilinear_at_half_pixel_centres_without_antialiasing_and_truncated(size):
    image, (top, left, height, width) = picture(90, 120), crops.Window(5, 11, 61, 83)
    window = image[top : top + height, left : left + width].astype(np.float64)
    expected = np.empty((size, size, 3))
    for i in range(size):
        for j in range(size):
            y, x = (i + 0.5) * height / size - 0.5, (j + 0.5) * width / size - 0.5
            y0, x0 = int(np.floor(y)), int(np.floor(x))
            total = 0.0
            for dy in (0, 1):
                for dx in (0, 1):
                    weight = (1 - abs(y - y0 - dy)) * (1 - abs(x - x0 - dx))
                    pixel = window[np.clip(y0 + dy, 0, height - 1), np.clip(x0 + dx, 0, width - 1)]
                    total = total + weight * pixel
            expected[i, j] = total
    ours = crops.resize(image, crops.Window(top, left, height, width), size)
    # Float32 may fall on the other side of a whole grey level, where the exact value is one.
    assert np.mean(ours == np.floor(expected)) > 0.999
    assert np.max(np.abs(ours - expected)) < 1 + 1e-3
    assert np.mean(ours == np.round(expected)) < 0.6, "rounded, not truncated"


@pytest.mark.parametrize("level", [0, 1, 100, 254, 255])
def test_flat_areas_keep_their_grey_level(level):
    image = np.full((301, 200, 3), level, np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert np.all(crops.inception_crop(rng, image, 128) == level)
    assert np.all(crops.central_crop(image, 160, 128) == level)


@pytest.mark.parametrize(("height", "width"), [(96, 144), (133, 87), (80, 101), (20, 30)])
def test_the_central_view_is_the_exact_area_average(height, width):
    """Against counting: each image enlarged until old and new pixels have a common grid."""
    image, shorter, size = picture(height, width), 40, 32
    rows, columns = (round(side * shorter / min(height, width)) for side in (height, width))
    fine = np.repeat(np.repeat(image.astype(np.float64), rows, axis=0), columns, axis=1)
    averaged = fine.reshape(rows, height, columns, width, 3).mean((1, 3))
    top, left = (rows - size) // 2, (columns - size) // 2
    expected = averaged[top : top + size, left : left + size]
    ours = crops.central_crop(image, shorter, size)
    assert ours.shape == (size, size, 3)
    assert np.mean(ours == np.floor(expected + 1e-6)) > 0.9999


def test_halves_of_pixels_round_to_even_like_tensorflows():
    # 160 / 320 * 401 = 200.5 -> 200
    assert crops.central_crop(picture(320, 401), 160, 160).shape == (160, 160, 3)
