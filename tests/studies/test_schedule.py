"""The plan of a study, and what it took."""

from __future__ import annotations

from graft.studies.schedule import intended, told


def test_the_plan_and_what_it_took_in_words() -> None:
    rows = [
        {"name": "probing", "seconds": 30.4, "at_most": False},
        {"name": "fine-tuning", "seconds": 270.0, "at_most": True},
    ]
    assert intended({"rungs": rows}, 600.0) == "Plan of 600 s: probing about 30 s, fine-tuning at most 270 s."
    assert intended({"rungs": rows[:1]}, float("inf")) == "Plan: probing about 30 s."
    took = [
        {"name": "probing", "predicted": 30.4, "at_most": False, "seconds": 28.0},
        {"name": "shrinking", "predicted": 60.0, "at_most": True, "seconds": 12.0},
        {"name": "selecting an ensemble", "predicted": None, "at_most": True, "seconds": 1.0},
    ]
    assert told(took) == (
        "Took: probing 28 s (predicted 30 s), shrinking 12 s (predicted at most 60 s), selecting an ensemble 1 s."
    )
    assert told([]) == ""
