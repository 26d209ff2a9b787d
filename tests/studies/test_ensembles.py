"""Greedy selection, its honest score, and the ensemble as a candidate that can be fitted and packed."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from studies.made_trials import chosen_from, incomplete, probabilities, targets, trial

from graft.deploy.assemble import assembled
from graft.images.dataset import Preprocess
from graft.judging.metrics import scores
from graft.judging.uncertainty import Difference
from graft.studies import ensembles
from graft.studies.branches import ModelCosts
from graft.studies.ensembles import (
    MOST_MEMBERS,
    MOST_TRAINED,
    ensemble_of,
    fitting_ensemble,
    select,
    sentence,
    trial_of,
)
from graft.studies.finish import Fitted
from graft.studies.frame import Event, Trial

COSTS = ModelCosts(2_000, 3_000_000, 4.0)
FOLDS = np.arange(300) // 3 % 5


def several(count: int = 5, *, accuracy: float = 0.8) -> list[Trial]:
    """Trials whose mistakes have nothing to do with each other."""
    return [
        trial(f"net{seed}/tap", probabilities(accuracy, seed=seed, sharpness=1.0)) for seed in range(count)
    ]


def test_independent_mistakes_are_averaged_away() -> None:
    found = ensemble_of(several(), targets(), FOLDS)
    assert 2 <= len(found.picks) <= MOST_MEMBERS
    single = max(scores(one.probabilities, targets())["macro_f1"] for one in several())
    assert scores(found.probabilities, targets())["macro_f1"] > single + 0.03
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, atol=1e-5)


def test_the_same_trials_give_the_same_ensemble() -> None:
    first, second = (ensemble_of(several(), targets(), FOLDS) for _ in range(2))
    assert first.picks == second.picks
    np.testing.assert_array_equal(first.probabilities, second.probabilities)


def test_a_copy_is_worth_nothing() -> None:
    table = probabilities(0.8, seed=0)
    picks = select(np.stack([table, table]), targets(), trained=[False, False])
    assert list(picks) == [0]


def test_the_predictions_of_a_fold_do_not_depend_on_its_labels() -> None:
    pool = several()
    found = ensemble_of(pool, targets(), FOLDS)
    other = targets().copy()
    other[FOLDS == 2] = (other[FOLDS == 2] + 1) % 3
    again = ensemble_of(pool, other, FOLDS)
    np.testing.assert_array_equal(found.probabilities[FOLDS == 2], again.probabilities[FOLDS == 2])
    assert found.folds[2] == again.folds[2]


def test_the_score_is_not_that_of_the_selection() -> None:
    """Of many candidates on few images, what was selected looks better on them than on images it was not selected on."""
    few, folds = targets(60), np.arange(60) // 3 % 5
    flattered = []
    for seed in range(6):
        generator = np.random.default_rng(seed)
        pool = [trial(f"n{i}/t", generator.dirichlet(np.ones(3), 60).astype(np.float32)) for i in range(20)]
        found = ensemble_of(pool, few, folds)
        whole = ensembles._mean(np.stack([one.probabilities for one in pool]), found.picks)
        flattered.append(scores(found.probabilities, few)["log_loss"] - scores(whole, few)["log_loss"])
    assert min(flattered) > 0 and np.mean(flattered) > 0.05


def test_few_members_are_trained_step_by_step() -> None:
    tables = np.stack([one.probabilities for one in several(6)])
    picks = select(tables, targets(), trained=[True] * 6)
    assert len(picks) == MOST_TRAINED


def test_who_cannot_be_a_member_is_told() -> None:
    good = several(2)
    odd = [
        incomplete(trial("half/t", probabilities(0.9, seed=7))),
        trial("unpacked/t", probabilities(0.9, seed=8), size=None),
        trial("chance/t", probabilities(0.9, seed=9), strategy="random"),
        trial("other/t", probabilities(0.9, seed=9), strategy="ensemble"),
    ]
    usable, left_out = ensembles._usable([*good, *odd])
    assert usable == good
    assert [row["ids"] for row in left_out] == [["half/t"], ["unpacked/t"], ["chance/t"], ["other/t"]]


def test_members_see_the_same_pixels() -> None:
    first, second, third = several(3)
    alone = replace(first, recipe=replace(first.recipe, geometry=Preprocess(64)))
    assert ensembles._by_geometry([alone, second, third]) == [[second, third]]
    assert ensembles._by_geometry([alone, second]) == []


def test_groups_of_several_framings_stay_apart_the_best_first() -> None:
    ranked = several(7)
    large = [replace(one, recipe=replace(one.recipe, geometry=Preprocess(64))) for one in ranked[1:3]]
    groups = ensembles._by_geometry([ranked[0], *large, *ranked[3:]])
    assert groups == [[ranked[0], *ranked[3:]], large]


def test_it_is_chosen_where_it_is_clearly_better() -> None:
    pool = several()
    found = ensemble_of(pool, targets(), FOLDS)
    joint = trial_of(pool, found, COSTS)
    assert joint.recipe.name == f"ensemble of {len(found.picks)}" and joint.recipe.strategy == "ensemble"
    assert joint.train_seconds == pytest.approx(0.5 * len(found.picks))
    assert sum(share["weight"] for share in joint.about["ensemble"]) == pytest.approx(1)
    assert chosen_from([*pool, joint]).chosen == len(pool)


def test_it_is_not_chosen_for_a_hair() -> None:
    best = trial("best/t", probabilities(0.99, seed=0))
    pool = [best, trial("next/t", probabilities(0.985, seed=1))]
    joint = trial_of(pool, ensemble_of(pool, targets(), FOLDS), COSTS)
    assert chosen_from([*pool, joint]).chosen == 0


def test_members_that_cannot_be_fitted_in_time() -> None:
    frozen, other = several(2)
    curves = ({"fold": 0}, {"fold": 1})
    tuned = replace(frozen, train_seconds=100.0, latency_ms=0.0, curves=curves)  # a last fit of 65 s
    assert ensembles.in_time([frozen, other], left=-100.0, kept=0.0, budget=300.0)
    assert ensembles.in_time([tuned, other], left=-100.0, kept=65.0, budget=300.0)
    assert not ensembles.in_time([tuned, tuned], left=100.0, kept=65.0, budget=300.0)
    assert ensembles.in_time([tuned, tuned], left=125.0, kept=65.0, budget=300.0)


def test_the_sentence() -> None:
    single, joint = trial("net/t", probabilities(0.8, seed=0)), trial("e/t", probabilities(0.9, seed=0))
    joint = replace(joint, recipe=replace(joint.recipe, name="ensemble of 3"), model_bytes=2_900_000)
    assert sentence("macro_f1", joint, single, Difference(0.008, -0.002, 0.019), candidates=9) == (
        "An ensemble of 3 would gain 0.8 points of macro-F1 against net/t (95 % interval of the difference: -0.2 points "
        "to +1.9 points), which may be nothing, for 2.9 times the bytes."
    )
    for ahead, told in (
        (
            Difference(0.0, -0.028, 0.028),
            "scores the same against net/t (95 % interval of the difference: -2.8",
        ),
        (Difference(0.0004, -0.028, 0.028), "scores the same against net/t"),
        (Difference(-0.053, -0.109, -0.002), "loses 5.3 points of macro-F1 against net/t"),
    ):
        joint.about["ensemble"] = [{}, {}]
        text = sentence("macro_f1", joint, single, ahead, candidates=9)
        assert text.startswith(f"No ensemble gains anything: the one selected, of 2, {told}")
    assert sentence("macro_f1", None, single, Difference(0.0, 0.0, 0.0), candidates=9) == (
        "No ensemble is worth it: greedy selection among 9 candidates takes one of them alone."
    )


def linear(seed: int, width: int) -> Fitted:
    """A model that reads the means of the channels, some of them several times."""
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=(3 * width, 3)).astype(np.float32)
    node, tensor = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [
            node("Cast", ["image"], ["floats"], to=onnx.TensorProto.FLOAT),
            node("ReduceMean", ["floats"], ["means"], axes=[1, 2], keepdims=0),
            node("Concat", ["means"] * width, ["tap"], axis=1),
        ],
        "means",
        [tensor("image", onnx.TensorProto.UINT8, ["n", 4, 4, 3])],
        [tensor("tap", onnx.TensorProto.FLOAT, ["n", 3 * width])],
    )
    opset = onnx.helper.make_opsetid("", 13 + seed % 2)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    packed = assembled(model, "tap", weight=weight, bias=weight[0], unit_length=True).SerializeToString()
    session = onnxruntime.InferenceSession(packed)

    def answer(images: np.ndarray) -> np.ndarray:
        return session.run(["probabilities"], {"image": images})[0]

    def rows(chosen: np.ndarray) -> np.ndarray:
        return np.full((len(chosen), 3 * width), width, np.float32)

    return Fitted(packed, Preprocess(4), answer, rows)


IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)


def test_the_packed_model_answers_with_the_weighted_mean() -> None:
    pool = several(3)
    found = ensembles.Ensemble({2: 3, 0: 1}, (), pool[0].probabilities)
    joint = trial_of(pool, found, COSTS)
    parts = {"net2/tap": linear(2, 1), "net0/tap": linear(3, 2)}

    def fit(member: Trial) -> Generator[Event, None, Fitted]:
        yield Event("progress", member.recipe.name)
        return parts[member.recipe.name]

    work = fitting_ensemble(joint, [*pool, joint], fit=fit)
    assert [next(work).text, next(work).text] == ["net2/tap", "net0/tap"]
    with pytest.raises(StopIteration) as ended:
        next(work)
    fitted = ended.value.value
    wanted = 0.75 * parts["net2/tap"].torch_probabilities(IMAGES)
    wanted += 0.25 * parts["net0/tap"].torch_probabilities(IMAGES)
    session = onnxruntime.InferenceSession(fitted.model)
    answers, embedding = session.run(["probabilities", "embedding"], {"image": IMAGES})
    np.testing.assert_allclose(answers, wanted, atol=1e-6)
    np.testing.assert_allclose(fitted.torch_probabilities(IMAGES), wanted, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, atol=1e-5)
    assert embedding.shape == (6, 9)
    assert [given.shape for given in session.get_outputs()] == [["n", 3], ["n", 9]]
    assert fitted.embeddings(np.arange(2)) == pytest.approx(np.array([[1] * 3 + [2] * 6] * 2) / np.sqrt(2))
