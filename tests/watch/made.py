"""Sweeps whose trials are told by hand, and pages as a browser reads them."""

from html.parser import HTMLParser
from pathlib import Path

from optuna.trial import BaseTrial, TrialState

from raymlc.options import TuneOptions
from raymlc.report import read_sweep
from raymlc.search.choice import PrunerName
from raymlc.search.space import Space
from raymlc.search.storage import open_study
from raymlc.search.study import StudyBook
from raymlc.trial import TrialConfig
from raymlc.watch.findings import Sweep

ACCURACY = "val/accuracy"
EPOCHS = 8


def ask(trial: BaseTrial) -> TrialConfig:
    return TrialConfig(
        lr=trial.suggest_float("lr", 1e-4, 1e-1, log=True),
        randaug_ops=trial.suggest_int("randaug_ops", 0, 3),
        gc=trial.suggest_categorical("gc", [False, True]),
        epochs=EPOCHS,
    )


class Made:
    """A sweep in a folder, whose trials are told by hand."""

    def __init__(
        self,
        folder: Path,
        trials: int,
        metric: str = ACCURACY,
        heads: tuple[str, ...] = ("color", "shape"),
        pruner: PrunerName = "none",
        data: Path | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        data = data or folder / "no data"
        options = TuneOptions(data=data, metric=metric, trials=str(trials), pruner=pruner)
        options.save(folder / "sweep.json")
        self.folder, self.heads, self.metric = folder, heads, metric
        study = open_study(folder / "study.journal", metric, "random", pruner, 0, EPOCHS)
        self.book = StudyBook(study, Space(Path("mine.py"), ask, {}), metric, trials)

    def begin(self) -> int:
        assignment = self.book.next()
        assert assignment is not None
        return assignment.number

    def metrics(self, epoch: int, score: float) -> dict[str, float]:
        """An epoch in which the first head is better than the last by as much each time."""
        middle = (len(self.heads) - 1) / 2
        of = {head: score + 0.02 * (middle - at) for at, head in enumerate(self.heads)}
        return {
            "epoch": float(epoch),
            "images": 100.0 * epoch,
            ACCURACY: score,
            **{f"val/accuracy/{head}": value for head, value in of.items()},
            "val/loss": 1 - score,
            **{f"val/loss/{head}": 1 - value for head, value in of.items()},
        }

    def train(self, number: int, score: float, epochs: int = EPOCHS) -> None:
        """Report epochs up to a score; the pruner has no word in it."""
        for epoch in range(1, epochs + 1):
            self.book.report(number, self.metrics(epoch, score * epoch / epochs), "host")

    def end(self, number: int, score: float, epochs: int = EPOCHS) -> TrialState:
        return self.book.end(number, self.metrics(epochs, score))

    def run(self, score: float) -> int:
        number = self.begin()
        self.run_on(number, score)
        return number

    def run_on(self, number: int, score: float) -> None:
        self.train(number, score)
        self.end(number, score)

    def prune(self, score: float, epochs: int) -> int:
        """A trial as a pruner leaves it."""
        number = self.begin()
        self.train(number, score, epochs)
        self.book._pruned.add(number)
        assert self.end(number, score, epochs) == TrialState.PRUNED
        return number

    def fail(self, reason: str) -> int:
        number = self.begin()
        self.book.end(number, {}, reason)
        return number

    def sweep(self) -> Sweep:
        return read_sweep(self.folder)


class Page(HTMLParser):
    """What a page has: ids, tables, text, and whatever a browser might fetch or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.handlers: list[str] = []
        self.links: list[str] = []
        self.pictures: list[dict[str, str | None]] = []
        self.text = ""
        self._rows: dict[str, list[list[str]]] = {}
        self._table = ""
        self._skipped = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        about = dict(attributes)
        self.tags.append(tag)
        self._skipped = tag in ("script", "style")
        if "id" in about:
            self.ids.append(str(about["id"]))
        self.handlers += [name for name in about if name.startswith("on")]
        for name in ("src", "srcset", "data", "action", "poster", "xlink:href", "background"):
            if name in about:
                self.fetched.append(str(about[name]))
        if "href" in about:
            (self.links if tag == "a" else self.fetched).append(str(about["href"]))
        if tag == "svg":
            self.pictures.append(about)
        if tag == "table":
            self._table = str(about["aria-label"])
            self._rows[self._table] = []
        elif tag == "tr":
            self._rows[self._table].append([])
        elif tag in ("td", "th"):
            self._rows[self._table][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._skipped = False
        if tag == "table":
            self._table = ""

    def handle_data(self, data: str) -> None:
        if self._skipped:
            return
        self.text += data
        if self._table and self._rows[self._table]:
            self._rows[self._table][-1][-1] += data

    def table(self, says: str) -> list[list[str]]:
        """The cells of a table, its header first."""
        return self._rows[says]
