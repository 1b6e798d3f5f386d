"""The Python interface: `factual_forgetting.score(checkpoint, bundle)`."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from factual_forgetting.bundle.manifest import HELDOUT, Bundle, load_bundle, locate_bundle
from factual_forgetting.scoring import render
from factual_forgetting.scoring.report import Report, make_report
from factual_forgetting.scoring.results import read_results
from factual_forgetting.scoring.score import score as score_with_lm_eval
from factual_forgetting.scoring.statistics import proportion, row_of
from factual_forgetting.scoring.styles import TASK

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_PLOTTED = ("task_learning", "plasticity", "stability", "lost", "gained", "hallucination")


@dataclass(frozen=True, slots=True)
class Score:
    """What a checkpoint knows of a bundle.

    Attributes:
        bundle: The bundle.
        report: Metrics with 95 % intervals, and what happened to each fact.
    """

    bundle: Bundle
    report: Report

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics by name: `value`, `low`, `high` and `n`, or None."""
        return dict(self.report.summary["metrics"])

    def __str__(self) -> str:
        return render.markdown([self.report])

    def to_pandas(self) -> pd.DataFrame:
        """Returns one row a fact: split, relation, question, gold, answer, what happened."""
        import pandas as pd

        judged = self.report.results.judgements
        return pd.DataFrame(
            {
                "id": change.item.fact.id,
                "split": change.split,
                "relation": change.item.fact.relation,
                "subject": change.item.fact.subject,
                "question": change.item.fact.question,
                "gold": change.item.fact.answers[0],
                "answer": change.answer.strip(),
                "correct": judged[change.item.fact.id].correct,
                "strict": judged[change.item.fact.id].strict,
                "f1": judged[change.item.fact.id].f1,
                "abstained": judged[change.item.fact.id].abstained,
                "transition": change.kind,
            }
            for change in self.report.transitions
        )

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draws the main metrics with their 95 % intervals."""
        shown = {key: row for key in _PLOTTED if (row := self.metrics[key])}
        labels = [key.replace("_", " ") for key in shown]
        return _dots(axes, labels, list(shown.values()), "share of facts")

    def plot_relations(self, axes: Axes | None = None) -> Axes:
        """Draws stability by relation with 95 % intervals."""
        frame = self.to_pandas()
        groups = frame[frame["split"] == HELDOUT].groupby("relation")["correct"]
        found = {
            str(name): row
            for name, outcomes in groups
            if (row := row_of(proportion(outcomes.tolist(), [str(name)] * len(outcomes))))
        }
        return _dots(axes, list(found), list(found.values()), "stability")


def _dots(axes: Axes | None, labels: list[str], rows: list[dict[str, Any]], title: str) -> Axes:
    if axes is None:
        from matplotlib.figure import Figure

        axes = Figure(layout="constrained").subplots()
    values = [row["value"] for row in rows]
    below = [row["value"] - row["low"] for row in rows]
    above = [row["high"] - row["value"] for row in rows]
    axes.errorbar(values, range(len(rows)), xerr=[below, above], fmt="o", capsize=3)
    axes.set_yticks(range(len(rows)), labels)
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
        descends: Declares that it descends from the base although its shape or marks say
            otherwise.

    Raises:
        UserError: If the checkpoint isn't found or doesn't descend from the bundle's base.
    """
    found = bundle if isinstance(bundle, Bundle) else load_bundle(locate_bundle(str(bundle)))
    with tempfile.TemporaryDirectory() as scratch:
        written = score_with_lm_eval(
            found,
            model,
            str(checkpoint),
            Path(output_path or scratch),
            tasks=(tasks,),
            batch_size=str(batch_size),
            device=device,
            descends=descends,
        )
        return Score(
            found, make_report(found, read_results(written, found, tasks), trained=trained)
        )
