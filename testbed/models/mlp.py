"""A deep, narrow multilayer perceptron."""

import jax
from flax import linen as nn
from jax import Array


class MLP(nn.Module):
    """Dense layers of the given widths with ReLU, then a head that starts at zero."""

    widths: tuple[int, ...]
    classes: int

    @nn.compact
    def __call__(self, images: Array) -> Array:
        x = images.reshape(images.shape[0], -1)
        for i, width in enumerate(self.widths, start=1):
            x = nn.Dense(width, kernel_init=nn.initializers.he_normal(), name=f"dense{i:02}")(x)
            x = jax.nn.relu(x)
        # The paper's students start at the uniform distribution.
        return nn.Dense(self.classes, kernel_init=nn.initializers.zeros, name="head")(x)
