"""Prepares the data set and the checkpoints that a task needs, and prints what is missing.

    python benchmarks/prepare.py --task flowers --fetch

Looks for the data set and the teachers' checkpoints (`--fetch` gets those that are missing), reads one
image, loads every weight, and computes what trials would otherwise compute when they start: decoded
images, central views, the teachers' logits on them. Whatever is missing is printed with the command or
the address that it comes from; exit status 2.
"""

if __name__ == "__main__":
    from testbed.start import start

    start("benchmarks.prepare")

import dataclasses
from contextlib import suppress
from pathlib import Path

from benchmarks import download
from benchmarks.trials import choose_precision
from testbed import compilation_cache, devices, paths, teachers
from testbed.cli import Parser, add_debug_option, invocation
from testbed.errors import RequestError
from testbed.problem.problem import open_problem
from testbed.problem.protocols import PROTOCOLS
from testbed.problem.task import Task
from testbed.tasks import find
from testbed.teachers import ExactTeacher, NetworkTeacher


def main() -> None:
    """Checks what the task needs, and prepares it."""
    p = Parser(description=__doc__.split("\n")[0])
    p.add_argument("--task", required=True, metavar="NAME", help="as in run.py")
    p.add_argument("--fetch", action="store_true", help="get missing checkpoints from their addresses")
    p.add_argument(
        "--protocol",
        default="function_matching",
        choices=sorted(PROTOCOLS),
        help="fixed_teacher needs the teachers' logits on all training images; default: %(default)s",
    )
    p.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "float32", "bfloat16"],
        help="that trials will have; auto: as on this machine",
    )
    p.add_argument("--check", action="store_true", help="only look for them")
    add_debug_option(p)
    args = p.parse_args()
    task = find(args.task)
    if args.fetch:
        for teacher in task.teachers:
            fetch(teacher)
    missing = [text for text in (check_data(task), *map(check_teacher, task.teachers)) if text]
    if missing:
        for text in missing:
            print(f"missing: {text}")
        raise RequestError(f"--task {task.name}: {len(missing)} of its parts are missing, see above")
    if args.check:
        return
    compilation_cache.enable_cache()
    devices.use()
    task = dataclasses.replace(task, precision=choose_precision(args.precision, task))
    open_problem(task, args.protocol).prepare()
    print(f"{task.name} is ready: {invocation('run')} --task {args.task} --opt adam")


def fetch(teacher: NetworkTeacher | ExactTeacher) -> None:
    """Downloads a public teacher's checkpoint, unless there is one that can be used.

    Raises:
      RequestError: it cannot be fetched, not be written, or not be used.
    """
    source = getattr(teacher, "public", None)
    if source is None:
        return
    path = paths.checkpoints() / source.file
    if path.exists():
        with suppress(RequestError):
            teachers.load(teacher)
            return

    def check(folder: Path) -> None:
        teachers.load.__wrapped__(teacher, folder)  # not kept: it is gigabytes

    download.fetch(source.address, path, check)


def check_data(task: Task) -> str:
    """Reads the data set's first image; says what is missing, or nothing."""
    if not task.streamed:
        task.data_sha256()  # reads them
        print(f"data of {task.name}: {'generated' if task.generated else 'in memory'}")
        return ""
    try:
        opened = task.stream()()
    except RequestError as error:
        return str(error)
    sizes = ", ".join(
        f"{len(part):,} for {name}"
        for name, part in zip(("training", "validation", "test"), opened[:3], strict=True)
    )
    image, label = opened.training[0]
    print(f"data set {opened.training.name}, in {paths.data_sets()}: {sizes} images")
    print(f"  the first has {image.shape[1]} x {image.shape[0]} pixels and label {label}")
    return ""


def check_teacher(teacher: NetworkTeacher | ExactTeacher) -> str:
    """Loads a teacher; says what is missing, or nothing."""
    try:
        weights = teachers.load(teacher)
    except RequestError as error:
        return str(error)
    print(f"teacher {teacher.name}: {weights.card['parameters']:,} parameters, SHA-256 {weights.sha256}")
    return ""
