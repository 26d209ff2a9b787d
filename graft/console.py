"""What the commands show at the end: the leaderboard, tables, lists. Plain lines where there is no terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from graft.errors import SettingsError

if TYPE_CHECKING:
    from graft.backbones.catalogue import Entry
    from graft.deploy.answers import LeftOut
    from graft.deploy.apart import Apart
    from graft.deploy.evaluate import Evaluation
    from graft.images.dataset import Dataset
    from graft.similar.build import Indexed
    from graft.studies.results import StudyResult

PERCENT = ("macro_f1", "accuracy", "balanced_accuracy")


def terminal(*, to_stderr: bool = False) -> Console:
    """A terminal as wide as it is; files and pipes get lines of 120."""
    console = Console(stderr=to_stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=to_stderr, highlight=False, width=120)


def board(rows: Sequence[Mapping[str, Any]], *, title: str) -> Table:
    """The leaderboard: the best tap of each backbone."""
    table = Table(title=escape(title), title_justify="left", title_style="dim")
    for name in ("candidate", "strategy"):
        table.add_column(name, overflow="fold")
    for name in ("score", "accuracy", "size", "latency"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            escape(row["id"]),
            row["strategy"],
            row["text"],
            f"{100 * row['accuracy']:.1f} %",
            _bytes(row["bytes"]),
            _latency(row["latency_ms"]),
        )
    return table


def show_result(result: StudyResult) -> None:
    """The end of a study: the improved leaderboard, the answer, and where everything is."""
    from graft.judging.metrics import METRICS

    console = terminal()
    facts, choice = result.facts, result.choice
    headline = choice["headline"]
    metric = METRICS[headline["metric"]]
    best: dict[str, Mapping[str, Any]] = {}
    for row in facts["candidates"]:
        if row["complete"]:
            best.setdefault(row["backbone"] + row["strategy"], row)
        if row["id"] == choice["id"]:
            best["choice"] = row
    near = ", nor a point behind" if metric.from_decisions else ""
    table = Table(
        title=f"{metric.label}, out of fold; tied: as good a choice as the best, not to be told apart from it{near}",
        title_justify="left",
        title_style="dim",
    )
    table.add_column("candidate", overflow="fold")
    table.add_column("strategy")
    for name in (metric.label, "95 % interval", "size", "latency", "tied"):
        table.add_column(name, justify="right", no_wrap=True)
    shown = {row["id"]: row for row in best.values()}
    for row in sorted(shown.values(), key=lambda row: -metric.sign * row["metrics"][metric.name]):
        low, high = row["interval"][metric.name]
        table.add_row(
            ("[bold]" if row["id"] == choice["id"] else "") + escape(row["id"]),
            row["strategy"] + ("" if row["complete"] else ", unfinished"),
            metric.text(row["metrics"][metric.name]),
            f"{metric.text(low)} to {metric.text(high)}",
            _bytes(row["cost"]["bytes"]),
            _latency(row["cost"]["latency_ms"]),
            "yes" if row["tied"] else "",
        )
    console.print(table)
    low, high = headline["interval"]
    opened = (choice["test"] or {}).get("opened", 1)
    often = f"{opened} times, for earlier choices, too, so that the score is a little flattered"
    kinds = {
        "test": f"on the locked test, opened {'once' if opened == 1 else often}",
        "bbc-cv": "cross-validated, corrected for having picked a winner",
    }
    console.print(f"[bold]Choice: {escape(choice['id'])}[/bold]", soft_wrap=True)
    console.print(
        f"  {metric.label} {metric.text(headline[metric.name])} (95 % interval {metric.text(low)} to {metric.text(high)}), "
        f"{kinds[headline['kind']]}",
        soft_wrap=True,
    )
    console.print(f"  {escape(choice['reason'])}", soft_wrap=True)
    console.print(f"  {escape(facts['scratch_versus_transfer']['sentence'])}", soft_wrap=True)
    seconds = facts["seconds"]
    console.print(f"[dim]first answer after {seconds['first_answer']} s, {seconds['total']} s in all[/dim]")
    console.print(f"report: {escape(str(result.run / 'report.html'))}", soft_wrap=True)
    console.print(f"bundle: {escape(str(result.run / 'model.graft'))}", soft_wrap=True)


def dataset_facts(dataset: Dataset) -> dict[str, Any]:
    """A checked dataset as JSON."""
    import numpy as np

    counts = np.bincount(dataset.targets, minlength=len(dataset.classes))
    return {
        "root": str(dataset.root),
        "images": len(dataset),
        "classes": {name: int(number) for name, number in zip(dataset.classes, counts, strict=True)},
        "splits": {name: dataset.splits.count(name) for name in ("train", "val", "test")},
        "groups": len(set(dataset.groups.tolist())),
        "excluded": dataset.excluded,
        "grey": dataset.mostly_grey,
        "fingerprint": dataset.fingerprint,
        "issues": [
            {"file": i.name, "issue": i.kind, "excluded": i.excluded, "class": i.label, "detail": i.detail}
            for i in dataset.issues
        ],
    }


def show_dataset(dataset: Dataset) -> None:
    """A checked dataset for people."""
    console = terminal()
    facts = dataset_facts(dataset)
    table = Table()
    table.add_column("class", overflow="fold")
    table.add_column("images", justify="right")
    for name, number in facts["classes"].items():
        table.add_row(escape(name), str(number))
    console.print(table)
    splits = ", ".join(f"{name} {number}" for name, number in facts["splits"].items() if number)
    console.print(
        f"{facts['images']} images, {facts['groups']} groups of near-duplicates or single images ({splits})"
    )
    console.print("grey: yes" if facts["grey"] else "grey: no")
    console.print(f"{facts['excluded']} files left out")
    for issue in facts["issues"][:20]:
        mark = "left out" if issue["excluded"] else "kept"
        console.print(
            f"  {issue['issue']} ({mark}): {escape(issue['file'])}: {escape(issue['detail'])}", soft_wrap=True
        )
    if len(facts["issues"]) > 20:
        console.print(f"  and {len(facts['issues']) - 20} more (--out check.csv writes all)")


def show_evaluation(evaluation: Evaluation) -> None:
    """What a model is worth on labelled images: its scores, then class by class."""
    from graft.deploy.evaluate import spelling_hint

    console = terminal()
    overview = Table(
        title=f"{evaluation.images} images of known classes", title_justify="left", title_style="dim"
    )
    overview.add_column("score")
    for name in ("value", "95 % interval"):
        overview.add_column(name, justify="right", no_wrap=True)
    for name, score in evaluation.scores.items():
        edges = (score.value, score.low, score.high)
        value, low, high = (f"{100 * part:.1f} %" if name in PERCENT else f"{part:.3f}" for part in edges)
        overview.add_row(name.replace("_", " "), value, f"{low} to {high}")
    console.print(overview)
    table = Table()
    table.add_column("class", overflow="fold")
    for name in ("precision", "recall", "F1", "images"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("most often taken for", overflow="fold")
    for row in evaluation.per_class:
        shares = (f"{100 * row[name]:.1f} %" for name in ("precision", "recall", "f1"))
        table.add_row(escape(row["class"]), *shares, str(row["support"]), _mistaken(evaluation, row["class"]))
    console.print(table)
    for name, count in evaluation.unknown.items():
        hint = spelling_hint(name, evaluation.labels)
        meant = f" (is {hint!r} meant? then rename the folder)" if hint else ""
        told = f"The model does not know the class {name!r}{meant}; its images ({count}) are not in these scores."
        console.print(escape(told), soft_wrap=True)
    if evaluation.unknown:
        share = 100 * evaluation.accuracy_with_unknown
        console.print(f"Counted as wrong, they bring the accuracy to {share:.1f} %.")
    if evaluation.apart is not None:
        console.print(_told_apart(evaluation.apart), soft_wrap=True)
    _show_left_out(console, evaluation.left_out)


def _told_apart(apart: Apart) -> str:
    auroc = apart.auroc
    return (
        f"Pictures of something else: {apart.others_called_unknown} of {apart.others} are called unknown, and "
        f"{apart.known_called_unknown} of {apart.known} images of known classes. The score tells them apart with an AUROC of "
        f"{auroc.value:.3f} (95 % interval {auroc.low:.3f} to {auroc.high:.3f})."
    )


def _mistaken(evaluation: Evaluation, name: str) -> str:
    """The two other labels that images of this class most often got, with their counts."""
    counts = evaluation.confusion[evaluation.truths.index(name)]
    others = [
        (int(-count), label)
        for label, count in zip(evaluation.labels, counts, strict=True)
        if count and label != name
    ]
    return escape(", ".join(f"{label} {-count}" for count, label in sorted(others)[:2]))


def show_indexed(indexed: Indexed) -> None:
    """What an indexing did."""
    console = terminal()
    console.print(
        f"{indexed.images} images: {indexed.added} added, {indexed.changed} changed, {indexed.removed} removed; "
        f"{indexed.embedded} went through the network"
    )
    if indexed.recall is not None:
        kept = "the search uses a graph" if not indexed.exact else "too few, so the search stays exact"
        console.print(f"a graph finds {100 * indexed.recall:.1f} % of the ten nearest: {kept}")
    _show_left_out(console, indexed.left_out)
    console.print(f"index: {escape(str(indexed.folder))}", soft_wrap=True)


def _show_left_out(console: Console, left_out: Sequence[LeftOut], most: int = 20) -> None:
    if not left_out:
        return
    console.print(f"{len(left_out)} files left out")
    for one in left_out[:most]:
        name = one.name.encode("utf-8", errors="replace").decode()
        console.print(f"  {escape(name)}: {escape(one.reason)}", soft_wrap=True)
    if len(left_out) > most:
        console.print(f"  and {len(left_out) - most} more")


def parameter_count(text: str) -> float:
    """`5M`, `300k`, `1e6` as a number."""
    factor = {"k": 1e3, "m": 1e6, "b": 1e9}.get(text[-1:].lower(), 1.0)
    try:
        value = float(text if factor == 1.0 else text[:-1]) * factor
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise SettingsError(f"--max-params {text}: give a number such as 5M or 300k.")
    return value


def model_rows(
    entries: Sequence[Entry], places: Mapping[str, str], *, sort: str, most: float | None
) -> list[dict[str, Any]]:
    """The catalogue as rows, sorted; a value that is not known comes last."""
    keys = {
        "name": lambda e: (False, e.name),
        "size": lambda e: (e.parameters is None, e.parameters or 0),
        "gmacs": lambda e: (e.gmacs is None, e.gmacs or 0.0),
        "top1": lambda e: (e.top1 is None, -(e.top1 or 0.0)),
    }
    if sort not in keys:
        raise SettingsError(f"--sort {sort}: choose {', '.join(keys)}.")
    kept = [e for e in entries if most is None or (e.parameters is not None and e.parameters <= most)]
    return [
        {
            "name": e.name,
            "weights": places[e.name],
            "parameters": e.parameters,
            "bytes": e.bytes,
            "gmacs": e.gmacs,
            "size": e.input.size,
            "top1": e.top1,
            "top5": e.top5,
            "published": e.published,
            "pretraining": e.pretraining,
            "licence": e.licence,
            "source": e.source,
            "stages": len(e.stages),
        }
        for e in sorted(kept, key=keys[sort])
    ]


def show_models(rows: Sequence[Mapping[str, Any]]) -> None:
    """The catalogue for people."""
    table = Table()
    table.add_column("name", overflow="fold")
    table.add_column("weights", no_wrap=True)
    for name in ("parameters", "GMACs", "px", "top-1"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("licence", overflow="fold")
    for row in rows:
        table.add_row(
            escape(row["name"]),
            row["weights"],
            f"{row['parameters'] / 1e6:.2f} M" if row["parameters"] else "?",
            f"{row['gmacs']:.2f}" if row["gmacs"] else "?",
            str(row["size"]),
            f"{row['top1']:.1f}" if row["top1"] else "",
            escape(row["licence"]),
        )
    console = terminal()
    console.print(table)
    if console.is_terminal:
        console.print(
            "[dim]here: can be used now; embedded: comes with Graft; hub: is downloaded when used; unreachable: cannot "
            "be had now[/dim]"
        )


def doctor_facts(weights: str | None) -> dict[str, Any]:
    """Versions, devices, what can be had offline, and the cache."""
    from graft.backbones.catalogue import rows
    from graft.backbones.hub import reach_hub
    from graft.backbones.weights import folder_from, held, locate
    from graft.compute import choose, cpu_has_bf16
    from graft.store import Store
    from graft.studies.results import environment

    folder, reach, store, compute = folder_from(weights), reach_hub(), Store(), choose("auto")
    here = held(folder)
    names = {entry.name for entry in here}
    entries = [*here, *(row for row in rows() if row.name not in names)]
    places = locate(entries, folder=folder, reach=reach)
    return {
        "versions": environment(),
        "device": compute.device,
        "threads": compute.threads,
        "cpu_bf16": cpu_has_bf16(),
        "hub": "reachable" if reach.hub else "not reachable",
        "weights_folder": str(folder.path) if folder else None,
        "here": sorted(name for name, place in places.items() if place in ("here", "embedded")),
        "unreachable": sum(place == "unreachable" for place in places.values()),
        "cache": {"folder": str(store.folder), "bytes": store.size_bytes(), "limit_bytes": store.limit_bytes},
    }


def show_doctor(facts: Mapping[str, Any]) -> None:
    """What `doctor` found, for people."""
    console = terminal()
    for name, version in facts["versions"].items():
        console.print(f"{name:13} {escape(version)}", soft_wrap=True)
    bf16 = "with bfloat16" if facts["cpu_bf16"] else "without bfloat16"
    console.print(f"device        {facts['device']}, {facts['threads']} threads, processor {bf16}")
    console.print(f"hub           {facts['hub']}")
    console.print(
        f"weights       {escape(facts['weights_folder'] or 'no folder given (--weights, GRAFT_WEIGHTS)')}",
        soft_wrap=True,
    )
    here = ", ".join(facts["here"]) or "none"
    console.print(
        f"here now      {escape(here)}; {facts['unreachable']} of the catalogue cannot be had", soft_wrap=True
    )
    cache = facts["cache"]
    console.print(
        f"cache         {escape(cache['folder'])}: {_bytes(cache['bytes'])} of at most {_bytes(cache['limit_bytes'])}",
        soft_wrap=True,
    )


def _bytes(size: int | float | None) -> str:
    if size is None:
        return "?"
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def _latency(milliseconds: float | None) -> str:
    return "?" if milliseconds is None else f"{milliseconds:.1f} ms"
