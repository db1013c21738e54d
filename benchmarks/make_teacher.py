"""Makes a shipped teacher: trains it on the labels of a task's training images.

    python benchmarks/make_teacher.py --task digits

Random crops, and mixup of images and labels in the same way; AdamW, one cosine cycle. The recipe was
chosen on the validation part; the test accuracy is measured once, at the end, and written into the card.
"""

if __name__ == "__main__":
    from testbed.start import start

    start("benchmarks.make_teacher")

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import random

from testbed import teachers
from testbed.cli import Parser, add_debug_option
from testbed.data import views
from testbed.data.arrays import Data, Part
from testbed.tasks import TASKS

# Wider than the task's crops, so that the teacher's function is well defined all around them.
CROP = views.AffineCrop(rotation=20.0, zoom=(0.7, 1.2), stretch=1.3, shift=0.12, fill=-1.0)
EMBEDDED = sorted(name for name, task in TASKS.items() if not task.streamed)
STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY, WARMUP = 6_000, 256, 3e-3, 1e-2, 300


def main() -> None:
    """Trains and writes every teacher of the task."""
    p = Parser(description=__doc__.splitlines()[0])
    p.add_argument("--task", default="digits-ensemble", choices=EMBEDDED, help="default: %(default)s")
    add_debug_option(p)
    task = TASKS[p.parse_args().task]
    data = task.arrays()
    for teacher in task.teachers:
        assert isinstance(teacher, teachers.NetworkTeacher)
        network = teacher.network
        params = train(network, data, seed=zlib.crc32(teacher.name.encode()))
        card = {
            "image_shape": list(data.training.inputs.shape[1:]),
            "validation_accuracy": accuracy(network, params, data.validation),
            "test_accuracy": accuracy(network, params, data.test),
            "network": type(network).__name__,
            "recipe": (
                f"{STEPS} steps of AdamW (learning rate {LEARNING_RATE}, weight decay "
                f"{WEIGHT_DECAY}, warm-up {WARMUP}, cosine), batch {BATCH}, on the labels of "
                f"{len(data.training.labels)} training images, {CROP}, mixup of images and "
                f"labels with a = max(u, 1 - u); python benchmarks/make_teacher.py --task {task.name}"
            ),
            "data_sha256": data.sha256,
        }
        weights = teachers.save(teacher, params, card)
        print(f"{teacher.name}: {dict(weights.card)}")


def train(network: nn.Module, data: Data, seed: int) -> dict[str, Any]:
    """The parameters after STEPS steps on the labels."""
    images, labels = (jnp.asarray(array) for array in data.training)
    init_key, train_key = random.split(random.key(seed))
    params = network.init(init_key, images[:1])["params"]
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, WARMUP, STEPS)
    optimizer = optax.adamw(schedule, weight_decay=WEIGHT_DECAY)

    def step(i: jax.Array, carry: Any) -> Any:
        params, opt_state = carry
        index_key, crop_key, mix_key = random.split(random.fold_in(train_key, i), 3)
        index = random.randint(index_key, (BATCH,), 0, len(labels))
        # The same key mixes the labels as it mixes the images.
        mixed = views.mixup(mix_key, CROP(crop_key, images[index]))
        targets = views.mixup(mix_key, jax.nn.one_hot(labels[index], 10))

        def loss(params: Any) -> jax.Array:
            logits = network.apply({"params": params}, mixed)
            return jnp.mean(optax.softmax_cross_entropy(logits, targets))

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    return jax.jit(lambda c: jax.lax.fori_loop(0, STEPS, step, c))((params, optimizer.init(params)))[0]


def accuracy(network: nn.Module, params: dict[str, Any], part: Part) -> float:
    """Share of right answers on the central views."""
    logits = network.apply({"params": params}, part.inputs)
    return float(jnp.mean(jnp.argmax(jnp.asarray(logits), -1) == part.labels))
