"""Whether a race comes out right where the truth is known: an optimizer against itself, many times.

    python benchmarks/results/race_aa.py --races 20

Race k is of seeds k * S to k * S + S - 1. The ratio is 1; a 95 % interval should contain it in 19 of 20
races, and be narrow. Races that are finished are not run again.
"""

from pathlib import Path
from typing import Any

import pandas as pd

from analysis.statistics import race as statistics
from analysis.statistics import ratio
from benchmarks.race import make_heats, make_lanes, measure, run_race
from benchmarks.trials import add_task_options, choose_problem
from testbed.cli import Parser, positive, serve
from testbed.errors import RequestError

TABLE = Path(__file__).with_suffix(".csv")


def main() -> None:
    """Runs the races, prints and writes the table."""
    p = Parser(description=__doc__.split("\n")[0])
    p.add_argument("--opt", default="adam", metavar="NAME", help="default: %(default)s")
    p.add_argument("--races", type=positive, default=20, metavar="N", help="default: %(default)s")
    p.add_argument(
        "--seeds", type=positive, default=5, metavar="S", help="of each; default: %(default)s"
    )
    p.add_argument("--out", type=Path, default=Path("runs/race-aa"), metavar="DIR", help="records")
    p.add_argument("--table", type=Path, default=TABLE, metavar="PATH", help="default: beside this file")
    p.add_argument("--debug", action="store_true", help="show the traceback of an error")
    add_task_options(p)
    args = p.parse_args()
    if args.hosts:
        raise RequestError(f"--hosts {args.hosts}: a race is on one machine; leave it out")
    problem, steps, published = choose_problem(args)
    lanes = make_lanes([args.opt] * 2, [], published)
    rows = []
    for number in range(args.races):
        seeds = range(number * args.seeds, (number + 1) * args.seeds)
        heats = make_heats(problem, lanes, steps, seeds)
        run_race(heats, args.out)
        baseline, rival = lanes
        table = statistics.pairs(measure(heats, args.out), baseline)
        rows += describe(table, rival, baseline, number)
        print(f"race {number}: {'; '.join(row['text'] for row in rows[-2:])}", flush=True)
    races = pd.DataFrame(rows).drop(columns="text")
    races.to_csv(args.table, index=False)
    for of, group in races.groupby("of", sort=False):
        print(
            f"{of}: {group['contains_1'].sum()} of {len(group)} intervals contain 1; "
            f"median width {group['width'].median():.2%}"
        )


def describe(table: pd.DataFrame, rival: str, baseline: str, number: int) -> list[dict[str, Any]]:
    """A row for seconds to target, and one for seconds per step."""
    mine, base = (table[table["lane"] == lane].set_index("seed") for lane in (rival, baseline))
    rows: list[dict[str, Any]] = []
    for of, found in (
        ("seconds to target", statistics.to_target(mine, base.loc[mine.index], "seconds")),
        ("seconds per step", ratio.geometric_mean(mine["ratio_of_seconds_per_step"])),
    ):
        rows.append(
            {"race": number, "of": of}
            | {name: getattr(found, name) for name in ("value", "low", "high", "n")}
            | {
                "width": found.high - found.low,
                "contains_1": found.low <= 1 <= found.high,
                "text": f"{of} {found}",
            }
        )
    return rows


if __name__ == "__main__":
    serve(main)
