"""The benchmarks as they were last run, seed by seed, and two searchers side by side on the same seeds."""

import json

import pandas

from ..core import ranking_metrics, store

# What was compared, and its file in data/acenas
PARTS = {"losses": "results.csv.gz", "weak labels": "labels.json", "fronts": "fronts.json"}


def contest(part: str) -> pandas.DataFrame:
    """A row a run: table, budget, seed, by (the searcher), and what was measured of it. `part` is one of PARTS:
    the older contest of losses and rivals, searches with and without weak labels, and fronts of two objectives.
    """
    if part not in PARTS:
        raise ValueError(f"part={part!r}: give one of {', '.join(PARTS)}")
    path = store.artefact(f"acenas/{PARTS[part]}")
    if path.suffix == ".json":
        return pandas.DataFrame(json.loads(path.read_text(encoding="utf-8"))["runs"])
    return pandas.read_csv(path).rename(columns={"scorer": "by", "ndcg10": "ndcg"})


def beside(rows: pandas.DataFrame, measure: str, first: str, second: str) -> pandas.DataFrame:
    """A row a table and budget: the means of two searchers over the seeds that both have, and the first less the second
    with its 95 % interval over these. `rows` are as `contest` gives them.
    """
    both = rows[rows["by"].isin((first, second))]
    wide = both.pivot_table(index=["table", "budget", "seed"], columns="by", values=measure).dropna()
    table_rows = []
    for (table, budget), part in wide.groupby(level=["table", "budget"]):
        apart = ranking_metrics.interval(part[first] - part[second])
        means = {name: f"{part[name].mean():.2f}" for name in (first, second)}
        less = {"first less second": apart.shown(2, "+")}
        table_rows.append({"table": table, "budget": budget, "seeds": len(part), **means, **less})
    return pandas.DataFrame(table_rows).set_index(["table", "budget"])


def seconds() -> pandas.DataFrame:
    """Seconds of a search without its trainings, of the older contest: a row a table, a column a scorer and budget."""
    figures = json.loads(store.artefact("acenas/figures.json").read_text(encoding="utf-8"))["figures"]
    scorers = {"encoder": "search_seconds", "trees": "search_seconds_lightgbm"}
    return pandas.DataFrame(
        {
            table: {
                f"{scorer}, {budget}": round(by_budget[budget][key], 1)
                for scorer, key in scorers.items()
                for budget in sorted(by_budget, key=int)
            }
            for table, by_budget in figures.items()
        }
    ).T
