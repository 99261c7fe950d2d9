"""The claim as it was last measured: HyperFD beside its rivals, order by order (`benchmarks/hyperfd_claim.py`)."""

import json

import pandas

from ..core import ranking_metrics, store

MORE = "more than HyperFD's"


def contest() -> pandas.DataFrame:
    """`data/faces/claim.json` as a frame, a row a recommender, order and task: by, seed (its order), place, regret."""
    runs = json.loads(store.artefact("faces/claim.json").read_text(encoding="utf-8"))["runs"]
    rows = [
        {"by": run["by"], "seed": run["order"], "place": served, "regret": regret}
        for run in runs
        if run["stream"] == "numbers"
        for served, regret in enumerate(run["regrets"])
    ]
    return pandas.DataFrame(rows)


def paired(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Rows as `contest` gives them, with the column MORE: the regret less HyperFD's, same order and same task."""
    hyperfd = rows[rows["by"] == "hyperfd"].set_index(["seed", "place"])["regret"]
    at = pandas.MultiIndex.from_frame(rows[["seed", "place"]])
    return rows.assign(**{MORE: rows["regret"].to_numpy() - hyperfd.loc[at].to_numpy()})


def leads(rows: pandas.DataFrame, first: int, last: int) -> pandas.DataFrame:
    """A row a recommender, the lowest first: its mean regret over tasks `first` to `last` of an order, counted from 1,
    with the 95 % interval over orders, and how much more that is than HyperFD's on the same orders.
    """
    some = rows[rows["place"].between(first - 1, last - 1)]
    means = some.groupby(["by", "seed"])["regret"].mean()
    more = paired(some).groupby(["by", "seed"])[MORE].mean()
    ordered = means.groupby("by").mean().sort_values(kind="stable").index
    columns = {"regret": {by: ranking_metrics.interval(means[by]).shown(1) for by in ordered}}
    columns[MORE] = {by: "" if by == "hyperfd" else ranking_metrics.interval(more[by]).shown(1) for by in ordered}
    return pandas.DataFrame(columns).loc[list(ordered)]
