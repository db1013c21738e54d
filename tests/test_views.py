import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from jax import random

from testbed.data import views
from testbed.data.views import AffineCrop
from testbed.tasks import TASKS

WIDE = AffineCrop(rotation=30.0, zoom=(0.5, 1.5), stretch=1.5, shift=0.2, fill=-1.0)
STILL = AffineCrop(rotation=0.0, zoom=(1.0, 1.0), stretch=1.0, shift=0.0, fill=-1.0)


@pytest.fixture
def images() -> jax.Array:
    return random.uniform(random.key(1), (6, 8, 10, 2), minval=-1)


def test_a_crop_that_does_nothing_is_the_identity(images):
    np.testing.assert_allclose(STILL(random.key(0), images), images, atol=1e-5)


def test_resampling_equals_scipys(images):
    """Window coordinates to pixel coordinates and bilinear weights, against an independent reference."""
    matrix, centre = WIDE.windows(random.key(3), len(images))
    crops = WIDE(random.key(3), images)
    height, width = images.shape[1:3]
    half = np.array([height / 2, width / 2])
    to_unit, to_pixel = np.diag(1 / half), np.diag(half)
    for i in range(len(images)):
        linear = to_pixel @ np.asarray(matrix[i]) @ to_unit
        # output pixel p -> unit (p + .5) / half - 1 -> window -> input pixel (u + 1) * half - .5
        offset = to_pixel @ (np.asarray(matrix[i]) @ (to_unit @ [0.5, 0.5] - 1) + centre[i] + 1) - 0.5
        for c in range(images.shape[-1]):
            expected = scipy.ndimage.affine_transform(
                np.asarray(images[i, :, :, c], np.float64), linear, offset, order=1, cval=-1.0
            )
            inside = _neighbours_inside(linear, offset, height, width)
            np.testing.assert_allclose(
                np.asarray(crops[i, :, :, c])[inside], expected[inside], atol=1e-4
            )


def _neighbours_inside(linear, offset, height, width):
    """Away from the border, where scipy fades into the fill value in its own way."""
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), axis=-1)
    points = grid @ linear.T + offset
    points = np.asarray(points)
    return np.all((points > 0) & (points < [height - 1, width - 1]), axis=-1)


def test_windows_have_the_stated_area_rotation_and_shift():
    matrix, centre = map(np.asarray, WIDE.windows(random.key(0), 20_000))
    zoom = np.sqrt(np.linalg.det(matrix))
    angle = np.rad2deg(np.arctan2(matrix[:, 1, 0], matrix[:, 0, 0]))
    low, high = np.log(WIDE.zoom)
    for sample, law in (
        (np.log(zoom), scipy.stats.uniform(low, high - low)),
        (-angle, scipy.stats.uniform(-WIDE.rotation, 2 * WIDE.rotation)),
        (centre[:, 0], scipy.stats.uniform(-2 * WIDE.shift, 4 * WIDE.shift)),
        (centre[:, 1], scipy.stats.uniform(-2 * WIDE.shift, 4 * WIDE.shift)),
    ):
        assert scipy.stats.kstest(sample, law.cdf).pvalue > 0.01
    stretch = np.linalg.norm(matrix[:, :, 1], axis=1) / np.linalg.norm(matrix[:, :, 0], axis=1)
    s = np.log(WIDE.stretch)
    assert scipy.stats.kstest(np.log(stretch), scipy.stats.uniform(-s, 2 * s).cdf).pvalue > 0.01


def test_outside_is_filled(images):
    far = dataclasses.replace(STILL, shift=3.0)
    crops = far(random.key(0), images)
    assert np.mean(np.asarray(crops) == -1.0) > 0.5


def test_views_are_functions_of_the_key(images):
    crop = TASKS["digits"].augment
    np.testing.assert_array_equal(crop(random.key(0), images), crop(random.key(0), images))
    assert np.any(np.asarray(crop(random.key(0), images)) != crop(random.key(1), images))


def test_mixup_pairs_each_image_with_the_one_before_it(images):
    mixed = np.asarray(views.mixup(random.key(5), images))
    before = np.roll(np.asarray(images), 1, axis=0)
    # One coefficient solves all pixels of all images.
    a = np.sum((mixed - before) * (images - before)) / np.sum((images - before) ** 2)
    assert 0.5 <= a <= 1
    np.testing.assert_allclose(mixed, a * images + (1 - a) * before, atol=1e-6)


def test_mixups_coefficient_is_uniform_on_half_to_one():
    pair = np.array([1.0, 0.0], np.float32).reshape(2, 1, 1, 1)
    keys = random.split(random.key(0), 10_000)
    a = np.asarray(jax.vmap(lambda key: views.mixup(key, pair)[0, 0, 0, 0])(keys))
    assert scipy.stats.kstest(a, scipy.stats.uniform(0.5, 0.5).cdf).pvalue > 0.01


def test_flips_mirror_half_of_the_images_and_nothing_else():
    images = jax.random.randint(jax.random.key(0), (4000, 2, 3, 1), 0, 256).astype(jnp.uint8)
    seen = np.asarray(views.Flip()(jax.random.key(1), images))
    plain, mirrored = (np.asarray(views.value_range(x)) for x in (images, images[:, :, ::-1]))
    is_plain, is_mirrored = (np.all(seen == x, axis=(1, 2, 3)) for x in (plain, mirrored))
    assert np.all(is_plain | is_mirrored)
    assert scipy.stats.binomtest(int(is_mirrored.sum()), 4000).pvalue > 0.001


def test_the_value_range_is_from_minus_one_to_one():
    levels = jnp.arange(256, dtype=jnp.uint8)
    np.testing.assert_allclose(views.value_range(levels), np.linspace(-1, 1, 256), atol=1e-6)
