"""What a step costs, and on what: from the ledgers of timed trials."""

import pandas as pd

from analysis.statistics.trials import GROUP

# Column -> row of the ledger. Learning is all of the training time but waiting for data.
OFF_THE_CLOCK = {
    "evaluation": "eval_s",
    "checkpoint": "checkpoint_s",
    "record": "record_s",
    "compile": "compile_s",
    "setup": "setup_s",
}
COSTS = ["learning", "data_wait", *OFF_THE_CLOCK]


def cost_split(runs: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds per step, medians over the ended, timed trials of each configuration.

    Args:
      runs: as of `frames.read`.

    Returns:
      Columns task, protocol, total_steps, optimizer, label, n; on the clock learning and data_wait; off
      it evaluation, checkpoint, record, compile, setup. NaN where a ledger has no such row.
    """
    columns = [*GROUP, "optimizer", "label", "n", *COSTS]
    needed = [f"ledger_{name}" for name in ("train_s", "data_wait_s", *OFF_THE_CLOCK.values())]
    ledgers = runs.reindex(columns=[*runs, *(set(needed) - {*runs})])
    ledgers = ledgers[ledgers["timed"] & ledgers["ledger_train_s"].notna() & (ledgers["steps"] > 0)]
    if ledgers.empty:
        return pd.DataFrame(columns=columns)
    seconds = ledgers[needed].apply(pd.to_numeric, errors="coerce")
    per_step = 1000 * seconds.div(ledgers["steps"].astype(float), axis=0)
    split = pd.DataFrame(
        {
            "learning": per_step["ledger_train_s"] - per_step["ledger_data_wait_s"].fillna(0),
            "data_wait": per_step["ledger_data_wait_s"],
            **{name: per_step[f"ledger_{row}"] for name, row in OFF_THE_CLOCK.items()},
        }
    )
    by = ledgers[[*GROUP, "optimizer", "label"]].join(split).groupby([*GROUP, "optimizer", "label"])
    return by.median().join(by.size().rename("n")).reset_index()[columns]
