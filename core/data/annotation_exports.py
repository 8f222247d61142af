"""Reads exports of annotation tools: Argilla's records, and Label Studio's pairwise comparisons. Each is read as two or
more answers with a judgement.

Only submitted responses and annotations that were not cancelled count. A record is refused if several people judged it
and do not agree, or if it holds only a suggestion by a model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from core.config import DataConfig
from core.data.label_meaning import side_of
from core.data.pair_drafts import Judged, Readings
from core.data.prompt_columns import asked
from core.data.rows import as_json
from core.data.several_answers import best_with_worst
from core.data.texts import Refused, is_blank, number_of, text_of
from core.data.two_answers import ENDINGS, LABELS, answer_columns, read_two_answers

Row = Mapping[str, Any]
ASKS_PREFERENCE = re.compile(r"prefer|rank|better|best|choice|choose|chosen|winner|label|compar|which", re.IGNORECASE)
RATINGS = re.compile(r"rating|score|quality|rate", re.IGNORECASE)
JUDGED_TYPES = ("pairwise", "choices", "rating")


def fits_argilla(row: Row) -> bool:
    """Whether a row is an Argilla record: nested, with `question.responses`, or with lists of {user_id, value, status}."""
    if isinstance(row.get("fields"), dict) and ("responses" in row or "suggestions" in row):
        return True
    return any(name.endswith((".responses", ".suggestion")) for name in row) or any(_is_response_list(value) for value in row.values())


def _is_response_list(value: Any) -> bool:
    keys = {"value", "status"}
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, dict) and (keys <= item.keys() or {"user_id", "value"} <= item.keys()) for item in value)
    return isinstance(value, dict) and keys <= value.keys()


def read_argilla(row: Row, config: DataConfig) -> Readings:
    """Pairs of a record's answers, by its ranking, its label, or its ratings. Raises Refused."""
    fields = _fields(row)
    answers = _answers(fields)
    if len(answers) < 2:
        raise Refused("fields", "holds no two answers (response_1, response_2 or the like)")
    judgements = {name: value for name, values in _responses(row).items() if (value := _agreed(name, values)) is not None}
    if not judgements:
        suggested = any(not is_blank(value) for name, value in row.items() if name == "suggestions" or name.endswith(("suggestion", "-suggestion")))
        raise Refused("responses", "only a suggestion: nobody submitted a response" if suggested else "nobody submitted a response")
    for name, value in judgements.items():
        ranks = _ranks(value, tuple(answers))
        if ranks:
            return _of_scores(fields, config, answers, {answer: -rank for answer, rank in ranks.items()}, name)
    ratings = _ratings(judgements, tuple(answers))
    if ratings:
        return _of_scores(fields, config, answers, ratings, next(iter(judgements)))
    return _labelled(fields, config, answers, judgements)


def _labelled(fields: Row, config: DataConfig, answers: Mapping[str, Any], judgements: Mapping[str, Any]) -> Readings:
    """The pair of two answers, by a response that names one or, to a question about preference, gives its number."""
    if len(answers) == 2:
        plain = {name: value for name, value in fields.items() if name not in LABELS}
        for name, value in judgements.items():
            named = isinstance(value, str) and (value in answers or side_of(value, (), "1/2", {}) is not None)
            if named or (isinstance(value, (str, int, float)) and ASKS_PREFERENCE.search(name)):
                label = ("first", "second")[list(answers).index(value)] if value in answers else value
                return read_two_answers({**plain, "label": label}, config)
    raise Refused("responses", f"no response that ranks, rates or names {' and '.join(answers)}")


def _fields(row: Row) -> dict[str, Any]:
    nested = row.get("fields")
    fields = dict(nested) if isinstance(nested, dict) else {}
    for name, value in row.items():
        plain = name.removeprefix("fields.")
        if name not in ("fields", "responses", "suggestions", "metadata", "vectors", "status") and not _is_response_list(value):
            fields.setdefault(plain, value)
    return fields


def _answers(fields: Row) -> dict[str, Any]:
    """The answers by column, sorted by their endings, such as response1, response2, ..."""
    columns = answer_columns(frozenset(name for name, value in fields.items() if isinstance(value, str)))
    if columns is None:
        return {}
    start = columns[0][: -len(ENDINGS[columns[2]][0])]
    names = [name for name in fields if re.fullmatch(re.escape(start) + r"(\d+|[a-zA-Z]|left|right)", name) and not is_blank(fields[name])]
    return {name: fields[name] for name in sorted(names)}


def _responses(row: Row) -> dict[str, list[Any]]:
    """The values that people submitted, by question."""
    responses: dict[str, list[Any]] = {}
    nested = row.get("responses")
    if isinstance(nested, dict):
        responses |= {name: _submitted(values) for name, values in nested.items()}
    elif isinstance(nested, list):  # version 1: one object a person, {values: {question: {value}}, status}
        for person in nested:
            if isinstance(person, dict) and isinstance(person.get("values"), dict) and person.get("status", "submitted") == "submitted":
                for name, value in person["values"].items():
                    responses.setdefault(name, []).append(value.get("value") if isinstance(value, dict) else value)
    for name, value in row.items():
        if name.endswith(".responses"):
            status = row.get(f"{name}.status")
            values = value if isinstance(value, list) else [value]
            kept = status if isinstance(status, list) and len(status) == len(values) else ["submitted"] * len(values)
            responses[name.removesuffix(".responses")] = [v for v, state in zip(values, kept, strict=True) if state == "submitted"]
        elif name not in ("responses", "suggestions") and _is_response_list(value):
            responses[name] = _submitted(value)
    return {name: [value for value in values if not is_blank(value)] for name, values in responses.items()}


def _submitted(values: Any) -> list[Any]:
    if isinstance(values, dict):  # columns in place of a list of objects
        length = len(values["value"]) if isinstance(values.get("value"), list) else 0
        values = [{key: column[i] for key, column in values.items() if isinstance(column, list) and i < len(column)} for i in range(length)]
    if not isinstance(values, list):
        return []
    return [item.get("value") for item in values if isinstance(item, dict) and (item.get("status") or "submitted") == "submitted"]


def _agreed(question: str, values: Sequence[Any]) -> Any:
    """The value on which all responses agree; None without responses.

    Raises Refused if they differ. Free texts are no judgement.
    """
    if not values or any(isinstance(value, str) and len(value.split()) > 3 for value in values):
        return None
    if len({as_json(value) for value in values}) > 1:
        raise Refused(question, f"{len(values)} people do not agree")
    return values[0]


def _ranks(value: Any, answers: tuple[str, ...]) -> dict[str, float]:
    """The rank of each answer, 1 for the best; empty if the value is no ranking of them."""
    if isinstance(value, dict) and isinstance(value.get("rank"), list) and isinstance(value.get("value"), list):
        value = [{"rank": rank, "value": name} for rank, name in zip(value["rank"], value["value"], strict=False)]
    if not isinstance(value, list) or not value:
        return {}
    if all(isinstance(item, str) for item in value):
        value = [{"rank": rank, "value": name} for rank, name in enumerate(value, 1)]
    if not all(isinstance(item, dict) and item.get("value") in answers for item in value):
        return {}
    return {item["value"]: number_of(item.get("rank"), "rank") for item in value}


def _ratings(judgements: Mapping[str, Any], answers: tuple[str, ...]) -> dict[str, float]:
    """The rating of each answer, from questions named after the answer or its ending; empty if one has no rating."""
    ratings: dict[str, float] = {}
    for answer in answers:
        ending = re.sub(r"^.*?(\d+|[a-zA-Z]|left|right)$", r"\1", answer)
        for name, value in judgements.items():
            rest = name.removeprefix(answer)
            named = rest != name and RATINGS.search(rest)
            ended = re.fullmatch(rf"(?:rating|score|quality)[-_ .]?{re.escape(ending)}", name, re.IGNORECASE)
            if (named or ended) and isinstance(value, (int, float)) and not isinstance(value, bool):
                ratings[answer] = float(value)
    return ratings if len(ratings) == len(answers) else {}


def _of_scores(fields: Row, config: DataConfig, answers: Mapping[str, Any], scores: Mapping[str, float], question: str) -> Readings:
    scored = [(scores[name], text_of(answers[name], name)) for name in answers if name in scores]
    if len({score for score, _ in scored}) < 2:
        raise Refused(question, "a tie: all answers are ranked or rated alike")
    return best_with_worst(asked(fields, config), scored, config)


def fits_label_studio(row: Row) -> bool:
    """Whether a row is a task of Label Studio with its annotations."""
    return isinstance(row.get("data"), dict) and any(isinstance(row.get(name), list) for name in ("annotations", "completions"))


def read_label_studio(row: Row, config: DataConfig) -> Readings:
    """The pair of a task's two texts, by the selected side.

    The two are found by name, or by the control tag's `to_name`.
    """
    data: dict[str, Any] = row["data"]
    items = row.get("annotations") if isinstance(row.get("annotations"), list) else row.get("completions")
    results = [
        result
        for annotation in items or []
        if isinstance(annotation, dict) and not annotation.get("was_cancelled") and not annotation.get("skipped")
        for result in annotation.get("result") or []
        if isinstance(result, dict) and result.get("type") in JUDGED_TYPES
    ]
    labels = [label for result in results if (label := _label(result)) is not None]
    if not labels:
        raise Refused("annotations", "nothing was selected")
    if len({as_json(label) for label in labels}) > 1:
        raise Refused("annotations", f"{len(labels)} judgements do not agree")
    names = str(results[0].get("to_name", "")).split(",")
    plain = {key: value for key, value in data.items() if not key.startswith(("label", "winner"))}
    if len(names) == 2 and all(name in data for name in names):
        plain = {**{key: value for key, value in plain.items() if key not in names}, "output_1": data[names[0]], "output_2": data[names[1]]}
    if answer_columns(frozenset(plain)) is None:
        raise Refused("data", f"no two answers among {', '.join(sorted(data))[:200]}")
    readings = read_two_answers({**plain, "label": labels[0]}, config)
    return [item._replace(column="annotations") if isinstance(item, Judged) else item for item in readings]


def _label(result: Mapping[str, Any]) -> Any:
    value = result.get("value")
    if not isinstance(value, dict):
        return None
    choices = value.get("choices")
    return value.get("selected") or (choices[0] if isinstance(choices, list) and len(choices) == 1 else None) or value.get("rating")
