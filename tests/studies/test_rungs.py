"""How long to train follows from the kind of machine, not from its clock."""

from __future__ import annotations

from graft.compute import Compute
from graft.studies.rungs import TRAINING_SPEED, training_speed


def test_two_cores_with_bfloat16_are_the_measure() -> None:
    assert training_speed(Compute("cpu", True, 2)) == TRAINING_SPEED


def test_more_cores_bfloat16_and_cards_train_longer() -> None:
    machines = [Compute("cpu", False, 1), Compute("cpu", False, 2), Compute("cpu", True, 2)]
    machines += [Compute("cpu", True, 8), Compute("cuda", True, 8)]
    speeds = [training_speed(machine) for machine in machines]
    assert speeds == sorted(speeds) and len(set(speeds)) == len(speeds)
    assert training_speed(Compute("cpu", True, 16)) < 8 * TRAINING_SPEED
