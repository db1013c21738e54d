"""The paper's data and checkpoints in their true formats, but tiny: written by the tests themselves.

As a program, it runs a command on the paper's tasks with tiny networks:
stand_ins.py run --task flowers ...
With $CHECKPOINT_EVERY, checkpoints are at least that many seconds apart.
"""

import dataclasses
import importlib
import io
import os
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from PIL import Image

from testbed import teachers
from testbed.data.arrays import InputSpec
from testbed.models.bit import BiT
from testbed.models.mobilenet import MobileNetV3
from testbed.tasks import TASKS
from testbed.teachers import TEACHERS
from testbed.training import checkpoints

TINY = BiT(depths=(1, 1), width=8, groups=4, classes=102, root="paper")
SIZE = 64  # pixels, of crops; half of the paper's
TEACHER = dataclasses.replace(
    TEACHERS["R152x2-flowers"], network=TINY, inputs=InputSpec((SIZE, SIZE, 3))
)
SPLITS = {"train": 24, "validation": 7, "test": 13}


def jpeg(number: int) -> bytes:
    """A smooth picture of random colours, of one of several sizes."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8))
    content = io.BytesIO()
    small.resize((150 + number % 50, 170 - number % 30), Image.Resampling.BICUBIC).save(content, "JPEG")
    return content.getvalue()


def write_flowers(folder: Path, file_format: str = "array_record") -> None:
    """oxford_flowers102 as TFDS stores it: array_record files of JPEG images, labels and file names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets as tfds

        features = tfds.features
        info = features.FeaturesDict(
            {
                "file_name": features.Text(),
                "image": features.Image(),
                "label": features.ClassLabel(num_classes=102),
            }
        )

        def examples(split: str, count: int) -> Any:
            for i in range(count):
                number = 100 * list(SPLITS).index(split) + i
                yield i, {"file_name": f"{number}.jpg", "image": jpeg(number), "label": number % 102}

        class OxfordFlowers102(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("2.1.1")
            name = "oxford_flowers102"

            def _info(self) -> Any:
                return tfds.core.DatasetInfo(builder=self, features=info)

            def _split_generators(self, dl_manager: Any) -> Any:
                return {split: examples(split, count) for split, count in SPLITS.items()}

            def _generate_examples(self) -> Any:
                raise NotImplementedError

        OxfordFlowers102(data_dir=str(folder), file_format=file_format).download_and_prepare()


def noisy_params(network: Any, image_shape: tuple[int, ...], seed: int = 0) -> Any:
    """Parameters of which none is zero or one: scales around one, all others around zero."""
    rng = np.random.default_rng(seed)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        kind = path[-1].key
        centre = 1 if kind == "scale" else 0
        # Kernels as wide as flax initializes them, with noise.
        spread = np.hypot(0.3, np.prod(leaf.shape[:-1]) ** -0.5) if kind == "kernel" else 0.3
        return (centre + spread * rng.normal(size=leaf.shape)).astype(np.float32)

    # Drawn by numpy: for the network's own initialization, XLA compiles dozens of programs.
    return jax.tree_util.tree_map_with_path(draw, teachers.shapes(network, InputSpec(image_shape)))


def to_legacy(params: Any, suffix: str = "") -> dict[str, np.ndarray]:
    """Parameters under the names of the public BiT files."""
    flat = {}
    letters = {"1": "a", "2": "b", "3": "c"}
    for path, leaf in flatten_dict(params).items():
        array = np.asarray(leaf)
        if path[0] == "head":
            array = array[None, None] if path[1] == "kernel" else array
            name = f"head/conv2d/{path[1]}"
        elif path[0] == "root_block":
            name = f"root_block/standardized_conv2d{suffix}/kernel"
        elif path[0] == "norm-pre-head":
            name = f"group_norm/{'gamma' if path[1] == 'scale' else 'beta'}"
            array = array.reshape(-1)
        elif path[2].startswith("gn"):
            kind = "gamma" if path[3] == "scale" else "beta"
            name = f"{path[0]}/{path[1]}/{letters[path[2][-1]]}/group_norm/{kind}"
            array = array.reshape(-1)
        else:
            part = "a/proj" if path[2] == "conv_proj" else letters[path[2][-1]]
            name = f"{path[0]}/{path[1]}/{part}/standardized_conv2d{suffix}/kernel"
        flat[f"resnet/{name}"] = array
    return flat


def write_teacher(folder: Path) -> None:
    """A tiny R152x2_T_flowers128.npz."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "R152x2_T_flowers128.npz", **to_legacy(noisy_params(TINY, (SIZE, SIZE, 3))))


def tiny_flowers() -> Any:
    """`flowers` with tiny networks, images and batches."""
    flowers = TASKS["flowers"]
    images = dataclasses.replace(flowers.stream(), size=SIZE, shorter_side=SIZE * 5 // 4)
    return dataclasses.replace(
        flowers, source=images, student=TINY, teachers=(TEACHER,), batch_size=8, measure_every=10
    )


def main() -> None:
    """Runs a command on the stand-ins."""
    from testbed.cli import serve

    name, *words = sys.argv[1:]
    sys.argv = [f"{name}.py", *words]
    mobile = dataclasses.replace(
        tiny_flowers(), name="flowers-mobilenet", student=MobileNetV3("small", 102)
    )
    tasks = {**TASKS, "flowers": tiny_flowers(), "flowers-mobilenet": mobile}
    every = float(os.environ.get("CHECKPOINT_EVERY", checkpoints.EVERY))
    with (
        mock.patch("testbed.tasks.TASKS", tasks),
        mock.patch("testbed.training.checkpoints.EVERY", every),
    ):
        serve(importlib.import_module(f"benchmarks.{name}").main)


if __name__ == "__main__":
    main()
