"""Golden records: numbers that a refactoring must leave equal, to the last bit.

    python tests/golden.py make DIR [--root CHECKOUT]   # with the code of a checkout (default: this one)
    python tests/golden.py compare DIR OTHER            # exit status 1 where a number differs

Trials of 40 steps of the embedded tasks and of a small streamed one (`stand_ins`), with three
optimizers, under all protocols; and a batch of trials. They are made by the command line alone, so that
any commit's code can make them; compare only folders that were made on one machine.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
TASKS = ("digits", "digits-ensemble", "digits-resnet", "digits-other", "flowers")
PROTOCOLS = (
    *("function_matching", "consistent_teaching", "independent_noise", "fixed_teacher", "labels"),
)
OPTIMIZERS = ("adam", "shampoo", "schedule_free")
TIMES = ("train_seconds",)  # everything else in a measurement is compared


def main() -> None:
    """Parses the command line."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("action", choices=["make", "compare"])
    p.add_argument("folder", type=Path)
    p.add_argument("other", type=Path, nargs="?")
    p.add_argument("--root", type=Path, default=HERE)
    p.add_argument("--task", action="append")
    args = p.parse_args()
    if args.action == "make":
        make(args.folder.resolve(), args.root.resolve(), args.task or TASKS)
    elif differing := compare(args.folder, args.other):
        sys.exit("\n".join(differing))


def make(folder: Path, root: Path, tasks: tuple[str, ...]) -> None:
    """Runs the trials with the code below `root`; their records are in `folder`."""
    opts = [word for name in OPTIMIZERS for word in ("--opt", name)]
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "TFDS_DATA_DIR": str(folder / "data"),
        "FUNMATCH_CHECKPOINTS": str(folder / "checkpoints"),
    }

    def call(*words: object) -> None:
        subprocess.run([sys.executable, *map(str, words)], cwd=root, env=environment, check=True)

    if "flowers" in tasks:
        call(
            "-c",
            "import sys, pathlib; from tests import stand_ins as s; d = pathlib.Path(sys.argv[1]); "
            "s.write_flowers(d / 'data'); s.write_teacher(d / 'checkpoints')",
            folder,
        )
    for task in tasks:
        command = ["tests/stand_ins.py", "run"] if task == "flowers" else ["benchmarks/run.py"]
        for protocol in PROTOCOLS:
            if (task, protocol) == ("digits-other", "labels"):
                continue  # its lessons have no labels
            out = folder / "runs" / protocol
            call(*command, "--task", task, "--protocol", protocol, "--steps", 40, "--out", out, *opts)
    if "digits" in tasks:
        call(
            *("benchmarks/sweep.py", "--ruleset", "self", "--studies", 2, "--steps", 13, *opts),
            *("--out", folder / "runs" / "batched"),
        )


def measurements(folder: Path) -> dict[str, list[dict[str, object]]]:
    """Trial (the folder of its record, and its seed) -> its measurements without times."""
    found = {}
    for path in sorted((folder / "runs").rglob("*.jsonl")):
        header, *rows = map(json.loads, path.read_text().splitlines())
        name = f"{path.parent.relative_to(folder / 'runs')} seed {header['seed']}"
        digest = {"params_sha256": rows.pop()["params_sha256"]}
        found[name] = [{k: v for k, v in row.items() if k not in TIMES} for row in rows] + [digest]
    return found


def compare(folder: Path, other: Path) -> list[str]:
    """A line for each trial that differs between the two."""
    ours, theirs = measurements(folder), measurements(other)
    print(f"{len(ours)} trials, {sum(map(len, ours.values()))} rows")
    return [
        f"{name}: {len(ours.get(name, []))} and {len(theirs.get(name, []))} rows, not equal"
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    ] or ([] if ours else ["nothing to compare"])


if __name__ == "__main__":
    main()
