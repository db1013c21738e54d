"""Best configurations that lie at the edge of what was tried: a better one may be beyond it."""

import json
from collections.abc import Collection

import pandas as pd

from analysis.frames import number
from analysis.statistics.trials import GROUP, best_per_optimizer

BY = [*GROUP, "optimizer"]
COLUMNS = [*BY, "hyperparameter", "value", "edge", "tried"]
FEWEST = 5  # values of a hyperparameter that make a search of it


def edges(ends: pd.DataFrame) -> pd.DataFrame:
    """Hyperparameters of the best configurations whose value is the lowest or the highest tried.

    From `trials.trials`. A lowest value of 0 is no edge, as most hyperparameters cannot be less.

    Returns:
      A row per group, optimizer and hyperparameter: value; edge ("lowest" or "highest"); tried (how many
      values).
    """
    ended = ends[ends["status"] != "unfinished"]
    best = best_per_optimizer(ended).drop_duplicates(BY)
    chosen = dict(zip(best[BY].itertuples(index=False, name=None), best["hyperparameters"], strict=True))
    rows = []
    for key, texts in ended.groupby(BY)["hyperparameters"]:
        tried = [json.loads(text) for text in texts.unique()]
        for name, best_value in json.loads(chosen[tuple(key)]).items():
            values = {value for hp in tried if (value := number(hp.get(name))) == value}
            value = number(best_value)
            if edge := edge_of(value, values):
                rows.append((*key, name, value, edge, len(values)))
    return pd.DataFrame(rows, columns=COLUMNS)


def edge_of(value: float, tried: Collection[float]) -> str:
    """Which of all that were tried a value is: "lowest", "highest", or "" for neither.

    Fewer than five different values make no edge; nor does a lowest of 0.
    """
    if len({*tried}) < FEWEST:
        return ""
    return "highest" if value == max(tried) else "lowest" if value == min(tried) and value else ""
