"""How far apart the same trials end, batched and alone.

    python benchmarks/sweep.py --opt sgd --opt adam --opt shampoo --out runs/batched
    python benchmarks/sweep.py --opt sgd --opt adam --opt shampoo --no-batch --out runs/alone
    python benchmarks/results/batched_and_alone.py runs/batched runs/alone

Of trials that both folders have finished: the difference of the logs of their final test KL.
"""

import math
from pathlib import Path

import pandas as pd

from testbed import records
from testbed.cli import Parser, serve
from testbed.errors import RequestError

TABLE = Path(__file__).with_suffix(".csv")


def main() -> None:
    """Reads both folders, prints and writes the table."""
    p = Parser(description=__doc__.split("\n")[0])
    p.add_argument("batched", type=Path, help="folder of records")
    p.add_argument("alone", type=Path, help="folder of records")
    p.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = p.parse_args()
    batched, alone = (ends(folder) for folder in (args.batched, args.alone))
    table = batched.merge(alone, on=["optimizer", "trial"], suffixes=("_batched", "_alone"))
    if table.empty:
        raise RequestError(f"{args.batched}, {args.alone}: there is no trial that both have finished")
    table.to_csv(TABLE, index=False)
    difference = table["test_kl_batched"].map(math.log) - table["test_kl_alone"].map(math.log)
    for name, part in [*difference.groupby(table["optimizer"]), ("all", difference)]:
        error = part.std() / len(part) ** 0.5
        print(
            f"{name}: n = {len(part)}, mean {part.mean():.3f} (standard error {error:.3f}), "
            f"standard deviation {part.std():.3f}"
        )


def ends(folder: Path) -> pd.DataFrame:
    """The final test KL of each finished trial, by its place in the folder."""
    rows = [
        (
            record.header["optimizer"],
            str(record.path.relative_to(folder)),
            record.measurements[-1]["test_kl"],
        )
        for record in records.read_folder(folder)
        if record.end and record.end["status"] == "finished"
    ]
    return pd.DataFrame(rows, columns=["optimizer", "trial", "test_kl"])


if __name__ == "__main__":
    serve(main)
