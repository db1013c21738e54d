"""Where the jobs of a sweep run: in this process, on a Ray cluster, under SLURM.

An engine only starts jobs and notices how they end. Records say which trials are finished, locks and
checkpoints which are running; so a job may be started again at any time, anywhere.
"""

import argparse
import dataclasses
import logging
import os
import shutil
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
from tqdm import tqdm

from benchmarks.jobs import Job, make_trials, run_job
from benchmarks.runner import interrupts
from benchmarks.trials import Choice, choose_problem
from testbed import devices, errors, records
from testbed.cli import Interrupted, count, positive
from testbed.errors import RequestError, describe
from testbed.training.alone import is_done

CODE = Path(__file__).parents[1]  # from where this code is imported: a clone, or an installation
DEATHS = 3  # of a job's workers, until the job is given up
PATIENCE = 15.0  # seconds for a cluster to answer, and for interrupted workers to save checkpoints
SHARED = ("JAX_", "XLA_", "OPENBLAS_", "FUNMATCH_", "TFDS_", "XDG_")


class Engine(Protocol):
    """Runs jobs; `at_once` of them at a time."""

    @property
    def at_once(self) -> int:
        """How many jobs run at a time."""

    def run(self, jobs: Sequence[Job]) -> None:
        """Runs all jobs.

        Raises:
          Interrupted: on SIGINT, SIGTERM or SIGHUP, once running trials have saved checkpoints.
          RequestError: a job cannot be run.
          RuntimeError: a job failed, or DEATHS workers died of it.
        """


def choose(name: str, workers: int | None = None, address: str | None = None) -> Engine:
    """The engine that `--engine` names.

    Args:
      name: local, ray or slurm.
      workers: how many jobs run at a time; None: as many as the engine has room for.
      address: of a Ray cluster (None: one of this machine alone, which ends with the command); local:
        submitit's local executor, to try SLURM without a cluster.

    Raises:
      RequestError: there is no such engine, it is not installed, or its cluster cannot be reached.
    """
    return errors.choose("--engine", name, ENGINES)(workers, address)


def open_where_it_runs(args: argparse.Namespace) -> tuple[Engine, Choice]:
    """The engine and the problem that the options of `add_options` and `add_task_options` name.

    With local batches it is opened on all of this machine's cores. Otherwise `--devices` is meant for
    the workers, and the problem here serves to make trials and to find errors.

    Raises:
      RequestError: see `choose` and `choose_problem`.
    """
    if args.engine != "local":  # workers want the accelerators' memory
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    engine = choose(args.engine, args.workers, args.address)
    if not args.no_batch and args.engine == "local":
        devices.use_cores(args.devices)
    here = {} if args.engine == "local" else {"devices": None}
    return engine, choose_problem(argparse.Namespace(**{**vars(args), **here}))


def add_options(p: argparse.ArgumentParser) -> None:
    """The options that say how trials are batched and where they run."""
    where = p.add_argument_group("how it runs")
    where.add_argument(
        "--no-batch", action="store_true", help="one trial after the other, not in batches"
    )
    where.add_argument(
        "--batch", type=positive, default=64, metavar="N", help="trials at once; default: %(default)s"
    )
    where.add_argument(
        "--engine", default="local", choices=["local", "ray", "slurm"], help="default: %(default)s"
    )
    where.add_argument("--workers", type=count, metavar="N", help="with ray or slurm: jobs at a time")
    where.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="with ray: of its cluster; default: this machine alone. With slurm: `local`, to try it",
    )


def _find_local(workers: int | None, address: str | None) -> Engine:
    if address is not None or workers not in (None, 1):
        raise RequestError("--engine local: one process; --workers and --address go with ray or slurm")
    return Local()


class Local:
    """In this process, one job after the other."""

    at_once = 1

    def run(self, jobs: Sequence[Job]) -> None:
        """See Engine."""
        planned = [_plan(job) for job in jobs]
        left = _unfinished(planned)
        with watch(planned) as refresh:
            while left:
                chosen = _next(left)
                run_job(chosen.job, refresh)
                left.remove(chosen)
        _check(planned)


class Planned(NamedTuple):
    """A job and where its trials' records will be."""

    job: Job
    paths: tuple[Path, ...]
    deaths: int = 0  # of workers that ran it

    def is_done(self, path: Path) -> bool:
        """Whether the trial of a record is, with all that the job asks for."""
        return is_done(path, self.job.save_params)


class Worker(Protocol):
    """A job that runs in another process."""

    def ended(self) -> bool:
        """Whether it has.

        Raises:
          RequestError, RuntimeError: the job failed.
          Died: its process did.
        """

    def stop(self) -> None:
        """Asks it to save a checkpoint and end."""


class Died(Exception):  # noqa: N818 (it costs a trial some time)
    """A worker's process ended before its job."""


@dataclasses.dataclass(frozen=True)
class Elsewhere:
    """In other processes, several at a time."""

    start: Callable[[Job], Worker]
    at_once: int

    def run(self, jobs: Sequence[Job]) -> None:
        """See Engine."""
        # The workers must have the devices that the job asks for; this process need not.
        planned = [
            _plan(dataclasses.replace(job, task={**job.task, "devices": None}))._replace(job=job)
            for job in jobs
        ]
        left = _unfinished(planned)
        running: list[tuple[Planned, Worker]] = []
        with interrupts() as interrupted, watch(planned) as refresh:
            try:
                while left or running:
                    while left and len(running) < self.at_once:
                        chosen = _next(left)
                        running.append((chosen, self.start(chosen.job)))
                        left.remove(chosen)
                    refresh()
                    if interrupted():
                        raise Interrupted("the same command resumes it")
                    running, again = _poll(running)
                    left.extend(again)
                    time.sleep(0.1)
            except BaseException:
                _stop([worker for _, worker in running])
                raise
        _check(planned)


def _poll(
    running: Sequence[tuple[Planned, Worker]],
) -> tuple[list[tuple[Planned, Worker]], list[Planned]]:
    """What still runs, and what must be run again because its worker died."""
    still, again = [], []
    for planned, worker in running:
        try:
            if not worker.ended():
                still.append((planned, worker))
        except Died as death:
            deaths = planned.deaths + 1
            if deaths == DEATHS:
                raise RuntimeError(
                    f"{deaths} workers died of one job, the last with: {death}"
                ) from death
            again.append(planned._replace(deaths=deaths))
    return still, again


def _stop(workers: Sequence[Worker]) -> None:
    """Asks all to end, and waits for them, up to PATIENCE."""
    for worker in workers:
        worker.stop()
    until = time.monotonic() + PATIENCE
    for worker in workers:
        while time.monotonic() < until:
            try:
                if worker.ended():
                    break
            except (Died, RequestError, RuntimeError):
                break
            time.sleep(0.1)


def _plan(job: Job) -> Planned:
    return Planned(job, tuple(trial.record_path(Path(job.out)) for trial in make_trials(job)))


def _unfinished(planned: Sequence[Planned]) -> list[Planned]:
    """Those of which a trial is left to be run; the same on every host."""
    return [
        plan
        for plan in planned
        if devices.any_host(devices.is_first() and not all(map(plan.is_done, plan.paths)))
    ]


def _next(left: Sequence[Planned]) -> Planned:
    """The first job that no other process is at: several sweeps in one folder share the work."""
    if jax.process_count() > 1:  # hosts would choose differently
        return left[0]
    return next((plan for plan in left if not any(map(records.is_held, plan.paths))), left[0])


def _check(planned: Sequence[Planned]) -> None:
    """Raises RuntimeError where workers have made other records than the jobs' trials."""
    left = [path for plan in _unfinished(planned) for path in plan.paths if not plan.is_done(path)]
    if left:
        raise RuntimeError(
            f"there is no finished record {left[0]}: workers must see the same --out and the same "
            "version of FunMatch, and optimizers must not be edited meanwhile"
        )


@contextmanager
def watch(planned: Sequence[Planned]) -> Iterator[Callable[[], None]]:
    """A progress bar over all trials, from their records, in whichever process they run.

    Yields:
      What brings the bar up to date, once a second at most.
    """
    total = sum(request.steps for plan in planned for request in plan.job.requests)
    refreshed = 0.0
    # None: shown on a terminal, silent in a pipe.
    quiet = None if devices.is_first() else True
    with tqdm(total=total, unit="step", disable=quiet) as bar:

        def refresh() -> None:
            nonlocal refreshed
            if not bar.disable and time.monotonic() >= refreshed + 1.0:
                finished, bar.n = done(planned)
                bar.set_description(f"{finished} of {sum(len(plan.paths) for plan in planned)} trials")
                refreshed = time.monotonic()

        refresh()
        bar.initial = bar.n  # steps of before are no speed
        yield refresh
        refreshed = 0.0
        refresh()


def done(planned: Sequence[Planned]) -> tuple[int, int]:
    """How many trials are finished, and the steps of all, by their last measurements."""
    finished = steps = 0
    for plan in planned:
        for path, request in zip(plan.paths, plan.job.requests, strict=True):
            row = records.last_row(path) or {}
            ended = row.get("status") in ("finished", "diverged")
            finished += ended
            steps += request.steps if ended else row.get("step", 0)
    return finished, steps


def attempt(job: Job) -> Exception | None:
    """Runs a job in a worker's process; what went wrong, as any process can read it."""
    try:
        run_job(job)
    except Interrupted:  # by the engine, which does not wait for an answer
        raise
    except RequestError as error:
        return RequestError(str(error))
    except (Exception, SystemExit) as error:
        return RuntimeError(describe(error))
    return None


def _environment() -> Mapping[str, str]:
    """The variables that workers need, and where they import this code from."""
    shared = {name: value for name, value in os.environ.items() if name.startswith(SHARED)}
    path = os.pathsep.join(filter(None, [str(CODE), os.environ.get("PYTHONPATH", "")]))
    return {**shared, "PYTHONPATH": path}


def _join_ray(workers: int | None, address: str | None) -> Engine:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Ray would hide the accelerators from jobs that ask for none, and says that it soon will not.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise RequestError("--engine ray: it is not installed; pip install ray") from error
    if address and address != "auto":
        _knock(address)
    _connect_ray(ray, address, max(os.cpu_count() or 1, workers or 1))
    resources = ray.cluster_resources()
    at_once = workers or int(resources.get("GPU") or resources.get("CPU") or 1)
    kind = "GPU" if resources.get("GPU") else "CPU"
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    # What no node has, no job would ever get.
    largest = max((node.get("CPU", 1) for node in nodes if node.get(kind)), default=1)
    cpus = max(1, int(min(largest, resources.get("CPU", 1) // at_once)))

    def start(job: Job) -> Worker:
        if job.batched and kind == "CPU":  # the cores that it has; a power of two divides batches
            cores = 1 << (cpus.bit_length() - 1)
            job = dataclasses.replace(job, task={**job.task, "devices": job.task["devices"] or cores})
        gpus = (job.task.get("devices") or 1) if kind == "GPU" else 0
        remote = ray.remote(
            num_cpus=cpus, num_gpus=gpus, max_retries=0, runtime_env={"env_vars": dict(_environment())}
        )(attempt)
        return RayWorker(remote.remote(job))

    return Elsewhere(start, at_once)


def _connect_ray(ray: Any, address: str | None, cores: int) -> None:
    """Connects to a cluster, or starts one of this machine alone, with that many cores.

    Raises:
      RequestError: it cannot be reached.
    """
    try:
        with warnings.catch_warnings():
            # JAX warns of forks; these only start other programs.
            warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
            if not ray.is_initialized():
                ray.init(
                    address or "local",
                    num_cpus=None if address else cores,
                    include_dashboard=None if address else False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        message = " ".join(str(error).split())[:200]
        what = f"--address {address}" if address else "--engine ray"
        raise RequestError(f"{what}: Ray cannot be reached ({message})") from error


def _knock(address: str) -> None:
    """Ray itself would wait for minutes, and say much."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE / 3).close()
    except (OSError, ValueError, OverflowError) as error:
        raise RequestError(
            f"--address {address}: no Ray cluster answers there ({error}); give HOST:PORT, as `ray "
            "start --head` shows it, or leave it out to use this machine alone"
        ) from error


@dataclasses.dataclass(frozen=True)
class RayWorker:
    """A task of Ray."""

    reference: Any

    def ended(self) -> bool:
        """See Worker."""
        import ray

        ready, _ = ray.wait([self.reference], timeout=0)
        if not ready:
            return False
        try:
            error = ray.get(self.reference)
        except ray.exceptions.RayError as death:
            raise Died(" ".join(str(death).split())[:300]) from death
        if error is not None:
            raise error
        return True

    def stop(self) -> None:
        """See Worker."""
        import ray

        ray.cancel(self.reference)


def _find_slurm(workers: int | None, address: str | None) -> Engine:
    try:
        import submitit
    except ImportError as error:
        raise RequestError("--engine slurm: it is not installed; pip install submitit") from error
    if address not in (None, "local"):
        raise RequestError(f"--address {address}: SLURM needs none; `local` tries it without a cluster")
    if address is None and shutil.which("sbatch") is None:
        raise RequestError(
            "--engine slurm: there is no sbatch here; start it where jobs are submitted, or try it "
            "with --address local"
        )

    def start(job: Job) -> Worker:
        executor = submitit.AutoExecutor(Path(job.out) / "slurm", cluster=address or "slurm")
        # SBATCH_TIMELIMIT, SBATCH_PARTITION, SBATCH_GPUS and the like, which sbatch reads, say more.
        executor.update_parameters(name="funmatch", timeout_min=24 * 60)
        return SlurmWorker(executor.submit(attempt, job))

    os.environ.update(_environment())
    at_once = workers or ((os.cpu_count() or 1) if address == "local" else 256)
    return Elsewhere(start, at_once)


@dataclasses.dataclass(frozen=True)
class SlurmWorker:
    """A job of submitit."""

    job: Any

    def ended(self) -> bool:
        """See Worker."""
        import submitit

        if not self.job.done():
            return False
        try:
            error = self.job.result()
        except submitit.core.utils.UncompletedJobError as death:
            raise Died(" ".join(str(death).split())[:300]) from death
        if error is not None:
            raise error
        return True

    def stop(self) -> None:
        """See Worker."""
        self.job.cancel(check=False)


ENGINES: Mapping[str, Callable[[int | None, str | None], Engine]] = {  # name -> workers, address -> it
    "local": _find_local,
    "ray": _join_ray,
    "slurm": _find_slurm,
}
