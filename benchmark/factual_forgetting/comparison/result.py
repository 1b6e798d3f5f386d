"""The result of a comparison, and the forms in which it is told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from factual_forgetting.comparison import outcomes as o
from factual_forgetting.comparison.contestants import Contestant
from factual_forgetting.comparison.outcomes import Pair
from factual_forgetting.comparison.telling import comparison_page, comparison_text
from factual_forgetting.plotting import figure_svg, new_figure
from factual_forgetting.scoring.api import draw_dots

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class Comparison:
    """What checkpoints kept, lost and gained, compared with their base.

    Attributes:
        summary: Everything but the facts, as plain JSON.
        outcomes: Each compared fact before and after, by checkpoint.
    """

    summary: dict[str, Any]
    outcomes: dict[str, list[Pair]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        models: Sequence[Contestant],
        outcomes: dict[str, list[Pair]],
        told: Mapping[str, Any],
        notes: Sequence[str],
    ) -> Comparison:
        """Computes a comparison.

        Args:
            models: The base and the checkpoints.
            outcomes: Facts before and after by the name of the checkpoint.
            told: What the comparison was made with.
            notes: What a reader must know before believing a number.
        """
        pairs = next(iter(outcomes.values()))
        rows = [
            {
                "name": one.name,
                "identity": one.identity,
                "measures": o.measures(outcomes[one.name]),
                "groups": o.grouped(outcomes[one.name]),
            }
            for one in models[1:]
        ]
        empty = [note for name, own in outcomes.items() for note in o.empty_note(name, own)]
        known = sum(pair.known for pair in pairs)
        summary = {
            **told,
            "base_name": models[0].name,
            "known": known,
            "unknown": len(pairs) - known,
            "floor": o.floor(pairs),
            "checkpoints": rows,
            "mcnemar": o.pairs_of_checkpoints(outcomes),
            "notes": [*notes, *empty],
        }
        return cls(summary, outcomes)

    @classmethod
    def nothing(cls, told: Mapping[str, Any]) -> Comparison:
        """Returns a comparison that found no known fact yet."""
        return cls({**told, "checkpoints": []})

    @property
    def half_width(self) -> float:
        """The longer side of the widest interval of the net loss."""
        nets = [row["measures"]["net"] for row in self.summary["checkpoints"]]
        sides = [max(net["high"] - net["value"], net["value"] - net["low"]) for net in nets]
        return max(sides, default=math.inf)

    def __str__(self) -> str:
        return comparison_text(self.summary, self.outcomes, "github")

    def page(self) -> str:
        """Returns all of it as one page of HTML."""
        figure = new_figure(8, 1.5 + 0.6 * len(self.outcomes))
        self.plot(figure.subplots())
        return comparison_page(self.summary, self.outcomes, figure_svg(figure))

    def to_pandas(self) -> pd.DataFrame:
        """Returns one row for each checkpoint and compared fact, with both answers."""
        import pandas as pd

        return pd.DataFrame(
            {
                "checkpoint": name,
                **{key: getattr(pair.fact, key) for key in ("id", "relation", "subject")},
                "question": pair.fact.question,
                "gold": pair.fact.answers[0],
                "popularity": pair.fact.popularity,
                "domain": pair.fact.domain,
                "known": pair.known,
                "base_margin": pair.margin,
                "base_answer": pair.base.text,
                "base_correct": pair.base.right,
                "answer": pair.reply.text,
                "correct": pair.reply.right,
                "fate": pair.fate,
            }
            for name, pairs in self.outcomes.items()
            for pair in pairs
        )

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draws what each checkpoint lost and gained with 95 % intervals, and the floor."""
        rows = {"another prompt alone, lost": self.summary["floor"]["lost"]}
        for row in self.summary["checkpoints"]:
            rows |= {f"{row['name']}, {key}": row["measures"][key] for key in ("lost", "gained")}
        return draw_dots(axes, rows, "share of facts")
