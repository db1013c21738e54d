"""How often compare.py finds what is there: the same comparison, repeated on fresh lessons and students.

    python benchmarks/results/repetitions.py --task digits --factor 1.05 --repetitions 10

Each is a run of `compare.py --no-tune --opt slowed-FACTOR+adam --opt adam` with a seed of its own, as a
user starts it, and timed from launch to exit. An optimizer that is slowed by a factor needs that many
times its own steps (`optimizers/wrappers/slowed.py`); a factor of 1 is an A/A test. Seeds that are in
the table already are not run again.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from testbed import provenance

TABLE = Path(__file__).with_suffix(".csv")
ROOT = Path(__file__).parents[2]
FIRST = 100  # of the seeds: below are those that the code was developed with


def main() -> None:
    """Runs the comparisons that the table lacks, and prints what all of the kind say."""
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--task", default="zipf-mlp", help="default: %(default)s")
    p.add_argument("--factor", type=float, default=1.05, help="default: %(default)s")
    p.add_argument("--repetitions", type=int, default=10, metavar="N", help="default: %(default)s")
    p.add_argument("--out", type=Path, default=Path("runs/repetitions"), metavar="DIR")
    p.add_argument("--table", type=Path, default=TABLE, metavar="FILE", help="default: beside this file")
    args = p.parse_args()
    for seed in range(FIRST, FIRST + args.repetitions):
        if not len(rows(args.table, args.task, args.factor, seed)):
            row = pd.DataFrame([compare(args.task, args.factor, seed, args.out)])
            row.to_csv(args.table, mode="a", header=not args.table.exists(), index=False)
    show(rows(args.table, args.task, args.factor).head(args.repetitions))


def rows(path: Path, task: str, factor: float, seed: int | None = None) -> pd.DataFrame:
    """What a table has of a comparison, of one seed or of all."""
    if not path.exists():
        return pd.DataFrame()
    table = pd.read_csv(path)
    kind = (table["task"] == task) & (table["factor"] == factor)
    return table[kind & (seed is None or table["seed"] == seed)]


def compare(task: str, factor: float, seed: int, out: Path) -> dict[str, object]:
    """One comparison."""
    folder = out / f"{task}-{factor:g}-{seed}"
    words = ["--no-tune", "--task", task, "--opt", f"slowed-{factor:g}+adam", "--opt", "adam"]
    places = ["--seed", str(seed), "--out", str(folder), "--report", str(folder / "report")]
    begin = time.monotonic()
    command = [sys.executable, str(ROOT / "benchmarks" / "compare.py"), *words, *places]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)  # noqa: S603 (our own)
    seconds = time.monotonic() - begin
    pair = json.loads((folder / "report" / "verdict.json").read_text())["pairs"][0]
    return {
        "task": task,
        "factor": factor,
        "seed": seed,
        **{name: pair[name] for name in ("ratio", "low", "high", "answer", "students", "smallest")},
        "seconds": round(seconds, 1),
        "machine": provenance.device()["processor"],
        "commit": (provenance.git() or {}).get("commit", "")[:7],
    }


def show(table: pd.DataFrame) -> None:
    """Prints comparisons and their summary."""
    print(table.to_string(index=False))
    apart = table["answer"].isin(["faster", "slower"]).sum()
    covers = ((table["low"] <= table["factor"]) & (table["factor"] <= table["high"])).sum()
    print(
        f"{len(table)} comparisons: {apart} find a difference, {covers} intervals hold the true ratio; "
        f"median {table['seconds'].median():.0f} s, longest {table['seconds'].max():.0f} s"
    )


if __name__ == "__main__":
    main()
