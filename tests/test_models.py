"""Networks against plain numpy, and public checkpoints into them."""

import functools
import io
import re
import tracemalloc
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax import lax, random

from testbed import teachers
from testbed.data.arrays import InputSpec
from testbed.errors import RequestError
from testbed.models import bit, public
from testbed.models.convolution import convolve, convolve_depthwise
from testbed.models.mobilenet import MobileNetV3
from tests.stand_ins import noisy_params, to_legacy

SHAPE = (40, 32, 3)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_convolution_by_patches_equals_xlas(size, stride):
    images = random.normal(random.key(0), (2, 8, 8, 3))
    kernel = random.normal(random.key(1), (size, size, 3, 5))
    pad = (size - 1) // 2
    expected = lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        [(pad, pad), (pad, pad)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(convolve(images, kernel, stride), expected, rtol=1e-4, atol=1e-4)


def test_standardized_kernels_have_zero_mean_and_unit_variance_per_output():
    kernel = bit.standardize(3 + 2 * random.normal(random.key(0), (3, 3, 4, 5)))
    np.testing.assert_allclose(np.mean(kernel, (0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(np.var(kernel, (0, 1, 2)), 1, rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 5])
def test_depthwise_convolution_equals_xlas(size, stride):
    images = random.normal(random.key(0), (2, 9, 8, 6))
    kernel = random.normal(random.key(1), (size, size, 1, 6))
    pad = (size - 1) // 2
    expected = lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        [(pad, pad), (pad, pad)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=6,
    )
    np.testing.assert_allclose(
        convolve_depthwise(images, kernel, stride), expected, rtol=1e-4, atol=1e-4
    )


# The whole forward pass of a BiT, written again in float64, from the arrays of a public checkpoint


def conv(x, kernel, stride=1):
    """Weight-standardized, padded by (k - 1) // 2 on all sides."""
    k = kernel.astype(np.float64)
    k = k - k.mean((0, 1, 2))
    k = k / np.sqrt((k**2).mean((0, 1, 2)) + 1e-10)
    pad = (len(k) - 1) // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, k.shape[:2], axis=(1, 2))
    return np.einsum("nyxcij,ijco->nyxo", windows[:, ::stride, ::stride], k, optimize=True)


def norm_relu(x, scale, bias, groups):
    parts = np.stack(np.split(x, groups, axis=-1))
    mean = parts.mean((2, 3, 4), keepdims=True)
    variance = parts.var((2, 3, 4), keepdims=True)
    x = np.concatenate((parts - mean) / np.sqrt(variance + 1e-5), axis=-1)
    return np.maximum(x * scale + bias, 0)


def max_pool(x, padding):
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=padding)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    return windows[:, ::2, ::2].max((-1, -2))


def legacy_logits(flat, images, groups, root):
    """Logits from the keys of the public BiT files (PROTOCOL: pre-activation, projected activations)."""
    p = {name.removeprefix("resnet/"): array for name, array in flat.items()}

    def norm(x, name):
        return norm_relu(x, p[f"{name}/gamma"], p[f"{name}/beta"], groups)

    x = images.astype(np.float64)
    if root == "small":
        x = conv(x, p["root_block/standardized_conv2d/kernel"])
    else:
        x = conv(x, p["root_block/standardized_conv2d/kernel"], 2)
        x = max_pool(x, -np.inf if root == "paper" else 0.0)
    units = sorted({tuple(name.split("/")[:2]) for name in p if name.startswith("block")})
    for block, unit in units:
        at = f"{block}/{unit}"
        stride = 2 if unit == "unit01" and block != "block1" else 1
        y = norm(x, f"{at}/a/group_norm")
        proj = p.get(f"{at}/a/proj/standardized_conv2d/kernel")
        shortcut = x if proj is None else conv(y, proj, stride)
        y = norm(conv(y, p[f"{at}/a/standardized_conv2d/kernel"]), f"{at}/b/group_norm")
        y = norm(conv(y, p[f"{at}/b/standardized_conv2d/kernel"], stride), f"{at}/c/group_norm")
        x = shortcut + conv(y, p[f"{at}/c/standardized_conv2d/kernel"])
    x = norm(x, "group_norm").mean((1, 2))
    return x @ p["head/conv2d/kernel"][0, 0].astype(np.float64) + p["head/conv2d/bias"]


def network(root="paper", classes=5, **values):
    return bit.BiT(depths=(1, 2), width=8, groups=4, classes=classes, root=root, **values)


def expected_shapes(model):
    return teachers.shapes(model, InputSpec(SHAPE))


def write(path, flat):
    np.savez(path, **flat)
    return path.read_bytes()


@pytest.mark.parametrize("root", ["paper", "big_transfer", "small"])
def test_a_public_checkpoint_gives_the_logits_that_the_architecture_demands(root, tmp_path):
    """Written under the public key names, read by our loader; the expectation never sees our network."""
    model = network(root)
    flat = to_legacy(noisy_params(model, SHAPE))
    params = public.fill(write(tmp_path / "a.npz", flat), "a", expected_shapes(model))
    images = np.asarray(random.uniform(random.key(0), (3, *SHAPE), minval=-1))
    expected = legacy_logits(flat, images, 4, root)
    logits = jax.jit(model.apply)({"params": params}, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_the_roots_are_different_functions():
    images = random.uniform(random.key(0), (3, *SHAPE), minval=-1)
    params = noisy_params(network(), SHAPE)
    one, other = (
        jax.jit(network(root).apply)({"params": params}, images) for root in ("paper", "big_transfer")
    )
    assert np.max(np.abs(one - other)) > 1e-3


@functools.cache
def layouts():
    params = noisy_params(network(), SHAPE)
    native = {name: np.asarray(a) for name, a in flatten_dict(params, sep="/").items()}
    return params, {
        "legacy": to_legacy(params),
        "legacy, numbered": to_legacy(params, suffix="_7"),
        "native": native,
        "native, under params": {f"params/{name}": a for name, a in native.items()},
        "native, of a trainer": {
            **{f"opt/1/mu/{name}": a for name, a in native.items()},
            **{f"params/{name}": a for name, a in native.items()},
            "opt/0/count": np.int32(3),
            "extra/seconds": np.float64(1.5),
        },
        "native, of a flax trainer": {
            **{f"opt/target/params/{name}": a for name, a in native.items()},
            **{f"opt/state/{name}": np.zeros(3) for name in native},
        },
        "native, under opt": {
            **{f"opt/target/{name}": a for name, a in native.items()},
            "opt/state/step": np.int32(3),
        },
    }


@pytest.mark.parametrize("name", list(layouts()[1]))
def test_every_layout_fills_the_same_parameters(name, tmp_path):
    params, flat = layouts()[0], layouts()[1][name]
    loaded = public.fill(write(tmp_path / "a.npz", flat), "a", expected_shapes(network()))
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize("layout", ["legacy", "native"])
def test_the_first_key_too_many_or_missing_is_named(layout, tmp_path):
    flat = layouts()[1][layout]
    last = list(flat)[-1]
    more = {**flat, f"{last}2": flat[last]}
    with pytest.raises(RequestError, match=f"{last}2"):
        public.fill(write(tmp_path / "a.npz", more), "a", expected_shapes(network()))
    less = {name: array for name, array in flat.items() if "block2" not in name or "unit02" not in name}
    with pytest.raises(RequestError, match="nothing in it fills the parameter block2/unit02"):
        public.fill(write(tmp_path / "a.npz", less), "a", expected_shapes(network()))


def test_a_classifier_of_another_size_is_refused_with_both_sizes(tmp_path):
    content = write(tmp_path / "a.npz", layouts()[1]["legacy"])
    with pytest.raises(RequestError, match="has 5 classes, the network 7"):
        public.fill(content, "a", expected_shapes(network(classes=7)))
    params = public.fill(content, "a", expected_shapes(network(classes=7)), fresh_head=True)
    assert params["head"]["kernel"].shape == (64, 7)
    assert not np.any(params["head"]["kernel"])


def header(shape, dtype="<f4", fortran=False):
    """A member of an archive that declares this, and has no data."""
    file = io.BytesIO()
    text = {"descr": dtype, "fortran_order": fortran, "shape": shape}
    np.lib.format.write_array_header_1_0(file, text)
    return file.getvalue()


def archive(members):
    """An .npz of these members, compressed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in members.items():
            made.writestr(f"{name}.npy", content)
    return file.getvalue()


def members():
    """The members of the native layout."""
    return {
        name: header(a.shape, fortran=False) + np.asarray(a, "<f4").tobytes()
        for name, a in layouts()[1]["native"].items()
    }


def peak_of(action):
    """Bytes allocated while a checkpoint is refused, and the message."""
    tracemalloc.start()
    try:
        with pytest.raises(RequestError) as caught:
            action()
        return tracemalloc.get_traced_memory()[1], str(caught.value)
    finally:
        tracemalloc.stop()


BOMB = bytes(200 << 20)  # 200 MiB, of which 200 KiB are left when it is compressed


@pytest.mark.parametrize(
    ("bomb", "message"),
    [
        ({"bomb": header((50 << 20,)) + BOMB}, "the network has no parameter for its bomb"),
        ({"head/bias": header((50 << 20,)) + BOMB}, "its classifier|has the shape"),
        ({"head/bias": header((5,)) + BOMB}, "head/bias has more bytes than it declares"),
        ({"head/bias": header((1 << 60,))}, "has the shape"),
        ({"head/bias": header((1 << 40, 1 << 40))}, "has the shape"),
        ({"head/bias": header((5,))}, "head/bias has fewer bytes than it declares"),
        ({"head/bias": header((5,), "|O") + b"." * 40}, "head/bias is Python objects, not numbers"),
        ({"head/bias": header((5,), "<U9000") + BOMB}, "of the type <U9000"),
        ({"head/bias": header((5,), "<c8") + b"." * 40}, "of the type complex64"),
        ({"head/bias": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + BOMB}, "the header of head/bias"),
        ({"head/bias": b"\x93NUMPY\x01\x00\xff\xff" + b" " * 65535}, "the header of head/bias"),
        ({"head/bias": b"no array"}, "the header of head/bias"),
        ({"head/bias": b""}, "the header of head/bias"),
    ],
)
def test_what_an_array_declares_is_looked_at_before_it_is_read(bomb, message):
    content = archive(members() | bomb)
    peak, said = peak_of(lambda: public.fill(content, "a", expected_shapes(network())))
    assert re.search(message, said)
    assert "\n" not in said
    assert "allow_pickle" not in said
    assert peak < 20 << 20


def test_what_is_beside_the_parameters_is_not_read():
    beside = {"opt/mu": header((50 << 20,)) + BOMB, "extra": header((1,), "|O") + b"."}
    content = archive({f"params/{name}": a for name, a in members().items()} | beside)
    jax.tree.map(
        np.testing.assert_array_equal,
        public.fill(content, "a", expected_shapes(network())),
        layouts()[0],
    )


def test_too_little_memory_is_one_line(monkeypatch):
    def none_left(*_):
        raise MemoryError

    monkeypatch.setattr(public.np, "frombuffer", none_left)
    with pytest.raises(RequestError, match=r"no memory for block1/unit01/conv1/kernel of 256 bytes"):
        public.fill(archive(members()), "a", expected_shapes(network()))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4", "bfloat16"])
def test_numbers_of_any_type_and_order_become_float32(dtype, order, tmp_path):
    flat = layouts()[1]["native"]
    other = {n: np.asarray(a.astype(jnp.dtype(dtype)), order=order) for n, a in flat.items()}
    loaded = public.fill(write(tmp_path / "a.npz", other), "a", expected_shapes(network()))
    for name, array in flatten_dict(loaded, sep="/").items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, other[name].astype(np.float32))


def test_a_flipped_byte_is_refused(tmp_path):
    content = bytearray(write(tmp_path / "a.npz", layouts()[1]["native"]))
    place = content.index(np.asarray(layouts()[1]["native"]["head/bias"]).tobytes())
    content[place] ^= 1
    with pytest.raises(RequestError, match="head/bias: BadZipFile"):
        public.fill(bytes(content), "a", expected_shapes(network()))


def test_kernels_of_another_shape_and_damaged_files_are_refused(tmp_path):
    flat = layouts()[1]["native"]
    wide = {**flat, "block1/unit01/conv1/kernel": np.zeros((1, 1, 9, 8))}
    with pytest.raises(RequestError, match=r"conv1/kernel has the shape \(1, 1, 9, 8\)"):
        public.fill(write(tmp_path / "a.npz", wide), "a", expected_shapes(network()))
    with pytest.raises(RequestError, match=r"not an \.npz of plain arrays"):
        public.fill(b"nothing of the kind", "a", expected_shapes(network()))
    np.savez(tmp_path / "b.npz", evil=np.array([object()]))
    with pytest.raises(RequestError, match=r"not an \.npz of plain arrays"):
        public.fill((tmp_path / "b.npz").read_bytes(), "b", expected_shapes(network()))


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(teachers.shapes(model, InputSpec((64, 64, 3)))))


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        ("R50x1", 10, 23_520_842),
        ("R50x1", 102, 23_709_350),
        ("R50x1", 1000, 25_549_352),
        ("R101x1", 1000, 44_541_480),
        ("R152x2", 10, 232_279_178),
        ("R152x2", 102, 232_656_102),
        ("R152x2", 1000, 236_335_208),
    ],
)
def test_parameter_counts_are_the_published_ones(name, classes, expected):
    assert count(bit.bit(name, classes)) == expected


def test_no_other_depths():
    with pytest.raises(ValueError, match="R51x1"):
        bit.bit("R51x1", 10)


@pytest.mark.parametrize(("variant", "expected"), [("large", 5_483_032), ("small", 2_542_856)])
def test_mobilenets_have_as_many_parameters_as_with_batch_norm(variant, expected):
    """Those of torchvision's mobilenet_v3, with 1000 classes."""
    assert count(MobileNetV3(variant, 1000)) == expected


@pytest.mark.parametrize("model", [network(), MobileNetV3("small", 5)], ids=["bit", "mobilenet"])
def test_logits_of_an_image_do_not_depend_on_its_batch(model):
    params = noisy_params(model, SHAPE)
    images = random.uniform(random.key(0), (4, *SHAPE), minval=-1)
    together, alone = (jax.jit(model.apply)({"params": params}, x) for x in (images, images[2:3]))
    np.testing.assert_allclose(together[2:3], alone, rtol=1e-3, atol=1e-3)
    assert np.ptp(together) > 0.1


@pytest.mark.parametrize("model", [network(), MobileNetV3("small", 5)], ids=["bit", "mobilenet"])
def test_bfloat16_computes_the_same_function_roughly_from_float32_parameters(model):
    params = noisy_params(model, SHAPE)
    images = random.uniform(random.key(0), (4, *SHAPE), minval=-1)
    half = model.clone(dtype="bfloat16")
    exact, rough = (jax.jit(m.apply)({"params": params}, images) for m in (model, half))
    assert rough.dtype == jnp.float32
    assert 0 < np.max(np.abs(rough - exact)) < 0.1 * np.max(np.abs(exact))
    shapes = teachers.shapes(half, InputSpec(SHAPE))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    text = jax.jit(half.apply).lower({"params": params}, images).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line or "convolution" in line]
    assert sum("bf16" in line for line in products) > len(products) // 2


def test_checkpointed_units_compute_the_same_gradient():
    params = noisy_params(network(), SHAPE)
    images = random.uniform(random.key(0), (2, *SHAPE), minval=-1)
    grads = [
        jax.jit(jax.grad(lambda p, m=model: jnp.sum(m.apply({"params": p}, images) ** 2)))(params)
        for model in (network(), network(checkpoint=True))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), *grads)
