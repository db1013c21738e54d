"""Devices: one mesh, batches split over it; several hosts.

The mesh in use is JAX's context mesh (`jax.set_mesh`), which optimizers may read too. On one device
there is no mesh, and the functions here have no effect.
"""

import functools
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from testbed.errors import RequestError

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")

AXIS = "data"
SHARE = 0.25  # of a device's memory that replicated parameters may take
PRODUCTS = "highest"  # precision of products and convolutions of float32 arrays: that of float32


def connect(address: str, processes: int | None = None, process: int | None = None) -> None:
    """Joins several hosts; must run before anything else touches a device.

    Args:
      address: "auto" if JAX finds the others itself (TPU pods, SLURM, Open MPI), or host:port of
        process 0.
      processes: number of processes; not with "auto".
      process: index of this process, from 0; not with "auto".

    Raises:
      RequestError: the hosts cannot be joined.
    """
    try:
        if address == "auto":
            jax.distributed.initialize()
        else:
            jax.distributed.initialize(address, processes, process)
    except (ValueError, RuntimeError) as error:
        message = " ".join(str(error).split())[:200]
        raise RequestError(
            f"--hosts {address}: {message}; outside of TPU pods and SLURM, give HOST:PORT with "
            "--processes and --process"
        ) from error


def use_cores(count: int | None = None) -> None:
    """Splits the CPU's cores into `count` devices; must run before anything else touches a device.

    Default: the number of cores, at most 8. This has no effect on accelerators, or if the environment
    already sets the number of devices.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        with suppress(RuntimeError):  # devices exist already
            jax.config.update("jax_num_cpu_devices", count or min(8, cores))


def use(count: int | None = None, batch_size: int | None = None) -> None:
    """Makes the mesh of `count` devices the context's, for the rest of the process.

    Default: all; on one host, the largest number that a batch can be split over.

    Raises:
      RequestError: fewer devices are available.
    """
    available = jax.device_count()
    if count is None:
        count = available
        if batch_size and jax.process_count() == 1:
            count = max(n for n in range(1, available + 1) if batch_size % n == 0)
    if not 1 <= count <= available or (jax.process_count() > 1 and count != available):
        raise RequestError(f"--devices {count}: this machine has {available}; choose 1 to {available}")
    if count > 1:
        jax.set_mesh(make_mesh(count))


def make_mesh(count: int) -> Mesh:
    """A mesh of the first `count` devices, with one axis."""
    return jax.make_mesh((count,), (AXIS,), (AxisType.Auto,), devices=jax.devices()[:count])


def mesh() -> Mesh | None:
    """The mesh in use; None on one device."""
    found = jax.sharding.get_mesh()
    return None if found.empty or found.size == 1 else found


def require_divisible(batch_size: int) -> None:
    """Raises RequestError if a batch cannot be split over the devices in use."""
    in_use = mesh()
    if in_use and batch_size % in_use.size:
        fits = max(n for n in range(1, in_use.size + 1) if batch_size % n == 0)
        raise RequestError(
            f"batch size {batch_size}: cannot be split over {in_use.size} devices; --devices {fits}"
        )


def batch_sharded() -> NamedSharding | None:
    """The sharding that divides the leading axis over all devices."""
    in_use = mesh()
    return NamedSharding(in_use, PartitionSpec(AXIS)) if in_use else None


def replicated() -> NamedSharding | None:
    """The sharding that replicates an array on every device."""
    in_use = mesh()
    return NamedSharding(in_use, PartitionSpec()) if in_use else None


def constrain(batch: Any) -> Any:
    """Inside a compiled function: arrays with their leading axis divided over all devices."""
    if jax.sharding.get_abstract_mesh().size <= 1:  # without a mesh, 0 or 1 by version
        return batch
    return jax.lax.with_sharding_constraint(batch, PartitionSpec(AXIS))


def count() -> int:
    """Number of devices in use."""
    in_use = mesh()
    return in_use.size if in_use else 1


def as_if_one() -> AbstractContextManager[Any]:
    """Inside this context, traced code sees no mesh."""
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))


def in_full_precision(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function, which computes products of float32 in float32 also on accelerators.

    By default a GPU rounds their factors to TF32, a TPU to bfloat16, and what an optimizer is measured
    by would depend on the device. Products of bfloat16 and what asks for a precision are not affected.
    """

    @functools.wraps(function)
    def in_precision(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with jax.default_matmul_precision(PRODUCTS):
            return function(*args, **kwargs)

    return in_precision


def shard_map_trials(f: Callable[..., Result], divided: int) -> Callable[..., Result]:
    """Runs f on each device, with its share of the first `divided` arguments' leading axis.

    The other arguments are replicated; results are joined along their leading axis. Inside, there is
    one device: optimizers that divide their work see no other device.
    """
    in_use = mesh()
    if in_use is None:
        return f

    def on_one(*arguments: Any) -> Result:
        with as_if_one():
            return f(*arguments)

    def on_all(*arguments: Any) -> Result:
        specs = [PartitionSpec(AXIS)] * divided
        specs += [PartitionSpec()] * (len(arguments) - divided)
        mapped = jax.shard_map(
            on_one, mesh=in_use, in_specs=tuple(specs), out_specs=PartitionSpec(AXIS), check_vma=False
        )
        return mapped(*arguments)

    return on_all


def rows(batch_size: int) -> NDArray[np.int64]:
    """Which rows of a batch this host provides, ascending."""
    sharding = batch_sharded()
    if sharding is None:
        return np.arange(batch_size)
    parts = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in parts if index]))


def from_process_local(local: NDArray[Any], sharding: NamedSharding | None) -> Array:
    """This host's rows (of batch-sharded arrays), or all (of replicated ones), as one global array."""
    if sharding is None:
        return jax.device_put(local)
    return jax.make_array_from_process_local_data(sharding, local)


def parameters(shapes: Any, copies: int = 1) -> Any:
    """The placement of parameters: a sharding for each leaf, None on one device.

    Replicated on every device, unless `copies` of all of them (gradients, optimizer's state) take more
    than a quarter of a device's memory: then each leaf is divided along its longest axis that divides
    evenly.
    """
    in_use = mesh()
    if not in_use:
        return None
    size = copies * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    if size <= SHARE * memory():
        return jax.tree.map(lambda leaf: replicated(), shapes)
    return jax.tree.map(lambda leaf: NamedSharding(in_use, _longest(leaf.shape, in_use.size)), shapes)


def _longest(shape: tuple[int, ...], devices: int) -> PartitionSpec:
    divisible = [axis for axis, length in enumerate(shape) if length and length % devices == 0]
    if not divisible:
        return PartitionSpec()
    axis = max(divisible, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * axis, AXIS)


def fits(program: Any) -> bool:
    """Whether a compiled program's arguments, results and intermediates fit a device's memory."""
    needs = program.memory_analysis()
    if needs is None:
        return True
    kept = needs.argument_size_in_bytes + needs.output_size_in_bytes - needs.alias_size_in_bytes
    return bool(kept + needs.temp_size_in_bytes <= memory())


def memory() -> float:
    """Bytes of memory of the smallest device; infinity if devices do not report it (a CPU)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    mine = float(stats.get("bytes_limit", np.inf))
    if jax.process_count() == 1:
        return mine
    from jax.experimental import multihost_utils

    return float(np.min(multihost_utils.process_allgather(np.float32(mine))))


def memory_for_batches() -> float:
    """Bytes of a device that a batch of trials may use; CPU devices share half of the machine's."""
    if jax.default_backend() != "cpu":
        return memory()
    machine = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError):  # the limit of a container or a SLURM job ("max": none)
        machine = min(machine, float(Path("/sys/fs/cgroup/memory.max").read_text()))
    return machine / 2 / jax.local_device_count()


def to_global(tree: Any, shardings: Any) -> Any:
    """Host arrays, the same on every host, as global arrays."""
    if shardings is None:
        return jax.device_put(tree)

    def put_leaf(leaf: Any, sharding: NamedSharding) -> Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put_leaf, tree, shardings)


def is_first() -> bool:
    """Whether this host is the one that writes files."""
    return jax.process_index() == 0


def any_host(value: bool) -> bool:
    """Whether `value` is true on any host; the same answer on every host."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.bool_(value))))


def try_on_all_hosts(action: Callable[[], Result]) -> Result:
    """The result of `action` on this host; a RequestError on one host makes all hosts raise one.

    Raises:
      RequestError: this host's, or one that reports an error on another host.
    """
    result, mine = None, None
    try:
        result = action()
    except RequestError as error:
        mine = error
    if any_host(mine is not None):
        raise mine or RequestError("another host cannot continue; its own message has the reason")
    return result  # type: ignore[return-value]


def from_host_0(value: float) -> float:
    """Host 0's value, on every host, so that all hosts make the same decision."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return float(multihost_utils.broadcast_one_to_all(np.float64(value)))
