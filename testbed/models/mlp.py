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
        x = images.reshape(images.shape[0], -1).T
        for i, width in enumerate(self.widths, start=1):
            x = jax.nn.relu(_Dense(width, nn.initializers.he_normal(), name=f"dense{i:02}")(x))
        # The paper's students start at the uniform distribution.
        return _Dense(self.classes, nn.initializers.zeros, name="head")(x).T


class _Dense(nn.Module):
    """flax's Dense with activations [features, batch].

    The gradient of a kernel then contracts the last axes of both arrays. Contracting the first ones, as
    for [batch, features], is slow in XLA on CPU.
    """

    features: int
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[0], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return kernel.T @ x + bias[:, None]
