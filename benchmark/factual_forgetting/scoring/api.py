"""The Python interface: `factual_forgetting.score(checkpoint, bundle)`."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from factual_forgetting.bundle.manifest import HELDOUT, Bundle, Item, load_bundle, locate_bundle
from factual_forgetting.plotting import plain_text
from factual_forgetting.scoring.metrics import accuracy
from factual_forgetting.scoring.render import report_markdown
from factual_forgetting.scoring.report import Report, make_report
from factual_forgetting.scoring.results import read_results
from factual_forgetting.scoring.score import run_lm_eval
from factual_forgetting.scoring.statistics import row_of
from factual_forgetting.scoring.styles import TASK

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_PLOTTED = ("task_learning", "plasticity", "stability", "lost", "gained", "hallucination")


@dataclass(frozen=True, slots=True)
class Score:
    """What a checkpoint knows of a bundle: metrics, and what happened to each fact."""

    bundle: Bundle
    report: Report

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics by name: `value`, `low`, `high` and `n`, or None."""
        return dict(self.report.summary["metrics"])

    def __str__(self) -> str:
        return report_markdown([self.report])

    def to_pandas(self) -> pd.DataFrame:
        """Returns one row a fact: split, relation, question, gold, answer, what happened."""
        import pandas as pd

        return pd.DataFrame(
            {
                "id": change.fact.id,
                "split": change.split,
                **{key: getattr(change.fact, key) for key in ("relation", "subject", "question")},
                "gold": change.fact.answers[0],
                "answer": change.answer.strip(),
                **asdict(self.report.results.judgements[change.fact.id]),
                "transition": change.kind,
            }
            for change in self.report.transitions
        )

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draws the main metrics with their 95 % intervals."""
        rows = {key.replace("_", " "): self.metrics[key] for key in _PLOTTED}
        return draw_dots(axes, rows, "share of facts")

    def plot_relations(self, axes: Axes | None = None) -> Axes:
        """Draws stability by relation with 95 % intervals."""
        items: dict[str, list[Item]] = defaultdict(list)
        for item in self.bundle.splits[HELDOUT]:
            items[item.fact.relation].append(item)
        correct = self.report.results.correct
        rows = {name: row_of(accuracy(items[name], correct)) for name in sorted(items)}
        return draw_dots(axes, rows, "stability")


def draw_dots(axes: Axes | None, rows: Mapping[str, dict[str, Any] | None], title: str) -> Axes:
    """Draws estimates by name as dots with their intervals; those that are None are left out."""
    if axes is None:
        from matplotlib.figure import Figure

        axes = Figure(layout="constrained").subplots()
    shown = {name: row for name, row in rows.items() if row}
    values, low, high = ([row[key] for row in shown.values()] for key in ("value", "low", "high"))
    reach = [np.subtract(values, low), np.subtract(high, values)]
    axes.errorbar(values, range(len(shown)), xerr=reach, fmt="o", capsize=3)
    axes.set_yticks(range(len(shown)), list(map(plain_text, shown)))
    axes.invert_yaxis()
    axes.set(xlim=(-0.02, 1.02), xlabel=title)
    return axes


def score(
    checkpoint: str | Path,
    bundle: str | Path | Bundle = "almanac",
    *,
    tasks: str = TASK,
    model: str = "hf",
    output_path: str | Path | None = None,
    batch_size: str | int = 128,
    device: str | None = None,
    trained: bool | None = None,
    descends: bool = False,
) -> Score:
    """Scores a checkpoint on the bundle of its base.

    Args:
        checkpoint: Directory or Hub name, or lm-eval's `key=value,key=value` of `model`.
        bundle: The bundle, its directory, `almanac`, or a Hub dataset as `name@commit`.
        tasks: `factual_forgetting`, `factual_forgetting_fewshot` or `factual_forgetting_chat`.
        model: lm-eval's model class.
        output_path: Where to keep lm-eval's results; nowhere by default.
        batch_size: As in lm-eval.
        device: As in lm-eval; by default the GPU where there is one.
        trained: Whether the checkpoint trained on D_train; by default a run of `finetune` did.
        descends: Declares its descent from the base, whatever its shape or marks say.

    Raises:
        UserError: If the checkpoint isn't found or doesn't descend from the bundle's base.
    """
    found = bundle if isinstance(bundle, Bundle) else load_bundle(locate_bundle(str(bundle)))
    with tempfile.TemporaryDirectory() as scratch:
        written = run_lm_eval(
            found,
            model,
            str(checkpoint),
            Path(output_path or scratch),
            tasks=(tasks,),
            batch_size=str(batch_size),
            device=device,
            descends=descends,
        )
        report = make_report(found, read_results(written, found, tasks), trained=trained)
    return Score(found, report)
