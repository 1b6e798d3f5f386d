"""The board as a table for programs: one row a method, its types the same whatever it holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

from factual_forgetting.board.board import ANY, KEEPS, LEARNS
from factual_forgetting.board.form import Cost

TABLE = "board.parquet"


def write_table(board: Mapping[str, Any], stream: IO[bytes]) -> None:
    """Writes the rows of a board as Parquet, for `datasets`, pandas or a database.

    Args:
        board: What `make_board` returns.
        stream: Where to; columns are named as in the board.
    """
    import pyarrow.parquet
    from pyarrow import Table

    rows = [
        {
            **row,
            "bundle": bundle["sha256"],
            "bundle_name": (bundle["reference"] or {}).get("name"),
            "base": bundle["base"],
        }
        for bundle in board["bundles"]
        for row in bundle["rows"]
    ]
    pyarrow.parquet.write_table(Table.from_pylist(rows, schema=_schema()), stream)


def _schema() -> Any:
    """The types: JSON's would be guessed from the rows, and a column without values has none."""
    import pyarrow as pa

    text, number, whole, truth = pa.string(), pa.float64(), pa.int64(), pa.bool_()
    share = {"value": number, "low": number, "high": number}
    estimate = _struct({**share, "n": whole})
    by_table = (LEARNS, KEEPS, ANY)
    point = {"step": whole, "task_learning": number, "plasticity": number, "stability": number}
    crossing = {
        **share, "lowest": number, "highest": number, "coarse": truth, "first_point": truth,
        "resamples_that_reach": number,
    }  # fmt: skip
    columns = {
        **dict.fromkeys(("bundle", "bundle_name", "base", "id", "method", "family"), text),
        **dict.fromkeys(("protocol", "submitter", "track", "level", "heldout_in_training"), text),
        "trials": whole,
        "style": text,
        "trained": truth,
        "reference": truth,
        "records": pa.list_(text),
        "seeds": pa.list_(whole),
        "rank": _struct(dict.fromkeys(by_table, whole)),
        "unranked": _struct(dict.fromkeys(by_table, text)),
        **dict.fromkeys(("task_learning", "plasticity", "stability", "lost", "gained"), estimate),
        "stability_macro": number,
        "stability_range": _struct({"lowest": number, "highest": number}),
        "stability_at_p90": _struct(crossing),
        "loss_against": _struct({"known_only": estimate, "sft": estimate}),
        "difference_at_p90": _struct({"sft": estimate}),
        "cost": _struct(dict.fromkeys(Cost.model_fields, number)),
        "curve": pa.list_(_struct(point)),
    }
    return pa.schema(list(columns.items()))


def _struct(fields: Mapping[str, Any]) -> Any:
    import pyarrow as pa

    return pa.struct(list(fields.items()))
