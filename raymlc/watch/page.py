"""The report of a sweep: one HTML page that loads nothing and needs no network."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import shlex
import time
from pathlib import Path
from typing import Any

from raymlc.watch.confusion import confusions
from raymlc.watch.finals import finals_lines
from raymlc.watch.findings import Sweep, sentences
from raymlc.watch.markup import Node, header, html_of, node, note, row, table
from raymlc.watch.plots import coordinates, curves, finals_chart, pareto, slices
from raymlc.watch.tables import cost, importance, leaderboard, number

BEGINNING = "<!DOCTYPE html>\n<!-- a report of raymlc -->\n"
_HERE = Path(__file__).parent


def page(sweep: Sweep) -> str:
    """The whole page."""
    finals = _finals(sweep)
    failures = _failures(sweep)
    sections = [
        ("leaderboard", "Leaderboard", leaderboard(sweep)),
        ("curves", "Learning curves", curves(sweep)),
        ("importance", "What mattered", importance(sweep)),
        ("coordinates", "Parallel coordinates", coordinates(sweep)),
        ("slices", "Each parameter by itself", slices(sweep)),
        ("front", "Pareto front", pareto(sweep)),
        ("cost", "Cost", cost(sweep)),
        ("confusion", "What is taken for what", _confusion(sweep)),
        *([("finals", "Finals", finals)] if finals else []),
        *([("failures", "Failures", failures)] if failures else []),
        ("reproduce", "How to train the winner again", _reproduce(sweep)),
    ]
    links = [node("a", {"href": f"#{name}"}, title) for name, title, _ in sections]
    body = node(
        "body",
        {},
        node("header", {"id": "summary"}, node("h1", {}, sweep.name), *_summary(sweep)),
        node("nav", {"aria-label": "Sections"}, *links),
        node(
            "main",
            {},
            *(
                node("section", {"id": name}, node("h2", {}, title), *inside)
                for name, title, inside in sections
            ),
        ),
        node("footer", {}, f"Written by raymlc on {_day(sweep.written)}."),
    )
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    body.append(node("script", {}, script))
    return BEGINNING + html_of(node("html", {"lang": "en"}, _head(sweep, script), body)) + "\n"


def _head(sweep: Sweep, script: str) -> Node:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # The page asks for nothing and runs this script alone, whatever a class is called.
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none';"
        f" form-action 'none'; script-src 'sha256-{digest}'"
    )
    return node(
        "head",
        {},
        node("meta", {"charset": "utf-8"}),
        node("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        node("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        node("meta", {"name": "color-scheme", "content": "light dark"}),
        node("link", {"rel": "icon", "href": "data:,"}),
        node("title", {}, f"{sweep.name}: sweep by {sweep.metric}"),
        node("style", {}, (_HERE / "report.css").read_text(encoding="utf-8")),
    )


def _summary(sweep: Sweep) -> list[Node]:
    lines = [node("p", {}, line) for line in sentences(sweep)]
    best = sweep.best
    if best is None or not sweep.heads:
        return lines
    rows = []
    for head in sweep.heads:
        value = best.metrics.get(f"val/accuracy/{head}", math.nan)
        majority = sweep.majority.get(head, math.nan)
        mark = "" if math.isnan(majority) else f";--m:{majority:.4f}"
        style = f"--s:{0.0 if math.isnan(value) else value:.4f}{mark}"
        gauge = node("span", {"class": "gauge", "style": style})
        known = [number(majority)] if sweep.majority else []
        bar = node("td", {"aria-hidden": "true"}, gauge)
        rows.append(row(head, number(value), *known, bar))
    column = ["majority"] if sweep.majority else []
    top = header("head", f"accuracy of trial {best.number}", *column, "")
    return [*lines, table("Accuracy of the best trial by head", top, rows, "heads")]


def _confusion(sweep: Sweep) -> list[Node]:
    best = sweep.best
    if best is None:
        return [node("p", {}, "No trial has stored a checkpoint yet.")]
    if not sweep.confusion:
        said = f"The checkpoint of trial {best.number} is not here, or has no counts."
        return [node("p", {}, said)]
    said = f"Of trial {best.number}'s checkpoint, in rows of the validation split."
    return [note(said), *confusions(sweep.confusion)]


def _finals(sweep: Sweep) -> list[Node]:
    lines = finals_lines(sweep.outcome)
    if not lines:
        return []
    rows = [
        row(
            str(one.trial),
            str(len(one.finals)),
            number(one.mean),
            number(one.deviation),
            number(one.swept),
            "complete" if one.whole else "stopped early",
            ", ".join(map(number, one.scores)),
        )
        for one in sweep.outcome.finalists
    ]
    top = header("trial", "finals", "mean", "deviation", "in the sweep", "there", "scores")
    parts = [
        node("ul", {}, *(node("li", {}, line) for line in lines)),
        table("Finals, the best mean first", top, rows),
    ]
    drawn = finals_chart(sweep)
    if drawn is not None:
        words = "Dots: finals, each of another seed. Rings: what the sweep itself had said."
        parts += [drawn, note(words)]
    return parts


def _failures(sweep: Sweep) -> list[Node]:
    reasons: dict[str, list[str]] = {}
    for one in sweep.told:
        if one.state == "FAIL":
            reasons.setdefault(one.reason, []).append(str(one.number))
    if not reasons:
        return []
    often = sorted(reasons, key=lambda reason: -len(reasons[reason]))
    rows = [row(reason, str(len(reasons[reason])), ", ".join(reasons[reason])) for reason in often]
    return [table("Failures by reason", header("reason", "count", "trials"), rows, "reasons")]


def _reproduce(sweep: Sweep) -> list[Node]:
    best = sweep.best
    if best is None:
        return [node("p", {}, "There is no winner yet.")]
    deployed = sweep.outcome.deployed
    config: dict[str, Any] = dict(best.config)
    folder = sweep.folder / "trials" / f"{best.number:04}" / "best"
    what = f"trial {best.number}"
    if deployed is not None:
        winner = next(one for one in sweep.told if one.number == deployed.trial)
        config = winner.config | {"seed": deployed.seed}
        folder = sweep.folder / "finals" / "trials" / f"{deployed.number:04}" / "best"
        what = f"final {deployed.number}, of trial {winner.number}"
    name = f"{sweep.name}-winner"
    train = ["python", "-m", "raymlc.train", "--name", name, "--trial", "trial.json", *sweep.train]
    validate = ["python", "-m", "raymlc.validate", str(folder)]
    return [
        node(
            "p",
            {},
            f"The winner is {what}. Its checkpoint is in ",
            node("code", {}, str(folder)),
            "; to measure it again:",
        ),
        node("pre", {}, shlex.join(validate)),
        node("p", {}, "To train it again, save the JSON below as trial.json:"),
        node("pre", {}, shlex.join(train)),
        node(
            "pre",
            {"class": "json", "tabindex": "0", "aria-label": "The trial as JSON"},
            json.dumps(config, indent=1),
        ),
    ]


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
