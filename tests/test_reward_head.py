"""The head and its training against torch.nn, torch.optim and cases by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from reward_helpers import learnable_inputs
from scipy.optimize import minimize_scalar
from statsmodels.discrete.discrete_model import Logit

from core.config import HeadConfig
from core.errors import Cancelled, DataError
from core.reward.head import Head, TrainedHead, fit_margin_scale, fold, shipped_index
from core.reward.training import FLOOR, LOSSES, HeadJob, standardisation, train_heads
from core.types import HeadInputs

N_TRAIN, N_VALIDATION, K = 150, 61, 6
TRAIN, VALIDATION = np.arange(N_TRAIN), N_TRAIN + np.arange(N_VALIDATION)
SHORT = HeadConfig(epochs=4, hidden=32)


def train(jobs: list[HeadJob], config: HeadConfig = SHORT) -> list[TrainedHead]:
    return train_heads(jobs, train=TRAIN, validation=VALIDATION, config=config)


def naive(
    inputs: HeadInputs, seed: int, loss: str, config: HeadConfig
) -> tuple[torch.nn.Module, list[tuple[float, float]], list[dict[str, torch.Tensor]]]:
    """The training loop anyone would write, for one head: torch.nn, torch.optim.AdamW, no early stopping."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(K, config.hidden), torch.nn.ReLU(), torch.nn.Linear(config.hidden, 1))
    both = np.concatenate([inputs.chosen[TRAIN], inputs.rejected[TRAIN]]).astype(np.float64)
    mean, std = both.mean(0), both.std(0)
    chosen, rejected = (torch.from_numpy(((side - mean) / std).astype(np.float32)) for side in (inputs.chosen, inputs.rejected))

    def losses(rows: torch.Tensor) -> torch.Tensor:
        s_w, s_l = model(chosen[rows])[:, 0], model(rejected[rows])[:, 0]
        if loss == "margin":
            return torch.clamp(config.gamma - (s_w - s_l), min=0)
        if loss == "bradley-terry":
            return -torch.nn.functional.logsigmoid(s_w - s_l)
        bce = torch.nn.functional.binary_cross_entropy_with_logits
        return (bce(s_w, torch.ones_like(s_w), reduction="none") + bce(s_l, torch.zeros_like(s_l), reduction="none")) / 2

    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    figures, states = [], []
    for _ in range(config.epochs):
        for rows in torch.randperm(N_TRAIN).split(config.batch_size):
            optimizer.zero_grad()
            losses(rows).mean().backward()
            optimizer.step()
        with torch.no_grad():
            held_out = torch.from_numpy(VALIDATION)
            right = (model(chosen[held_out]) > model(rejected[held_out])).double().mean()
            figures.append((float(right), float(losses(held_out).mean())))
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    return model, figures, states


@pytest.mark.parametrize("loss", LOSSES)
def test_a_trained_head_is_the_naive_loops(loss: str) -> None:
    inputs = learnable_inputs(N_TRAIN + N_VALIDATION, K)
    model, figures, states = naive(inputs, 3, loss, SHORT)
    (ours,) = train([HeadJob(inputs=inputs, seed=3, loss=loss)])
    best = min(range(SHORT.epochs), key=lambda i: (-figures[i][0], figures[i][1], i))
    assert (ours.epoch, ours.epochs, ours.loss, ours.seed) == (best + 1, SHORT.epochs, loss, 3)
    assert ours.validation_accuracy == pytest.approx(figures[best][0], abs=1e-9)
    assert ours.validation_loss == pytest.approx(figures[best][1], abs=1e-5)
    model.load_state_dict(states[best])
    both = np.concatenate([inputs.chosen[TRAIN], inputs.rejected[TRAIN]]).astype(np.float64)
    standard = (inputs.values - both.mean(0)) / both.std(0)
    with torch.no_grad():
        expected = model(torch.from_numpy(standard.astype(np.float32)))[:, 0].double().numpy()
    rewards = ours.head.reward(inputs.values)
    if loss != "bce":
        # A loss of the margin leaves the last bias free; the plain loop lets it walk on rounding noise.
        rewards, expected = rewards - rewards.mean(), expected - expected.mean()
    np.testing.assert_allclose(rewards, expected, atol=1e-4 * expected.std())


@pytest.mark.parametrize(("loss", "moves"), [("margin", False), ("bradley-terry", False), ("bce", True)])
def test_the_last_bias_moves_only_where_the_loss_sees_it(loss: str, moves: bool) -> None:
    config = HeadConfig(epochs=4, hidden=32, weight_decay=0.0)
    torch.manual_seed(0)
    first, last = torch.nn.Linear(K, 32), torch.nn.Linear(32, 1)
    (head,) = train([HeadJob(inputs=learnable_inputs(N_TRAIN + N_VALIDATION, K), seed=0, loss=loss)], config)
    assert (abs(float(head.head.bias_2[0]) - last.bias.item()) > 1e-4) is moves
    assert not np.allclose(head.head.weight_2, last.weight.detach().numpy()) and first.in_features == K


def test_a_head_in_an_ensemble_is_the_head_alone() -> None:
    """Other seeds, losses, inputs and widths beside it, heads that stop earlier and leave: nothing of it shows."""
    config = HeadConfig(epochs=12, hidden=32, patience=3)
    inputs = [learnable_inputs(N_TRAIN + N_VALIDATION, k, seed=s) for s, k in enumerate((K, K, 3))]
    jobs = [HeadJob(inputs=one, seed=seed, loss=loss) for seed in range(3) for one in inputs for loss in LOSSES]
    together = train(jobs, config)
    assert len({head.epochs for head in together}) > 2
    for job, head in list(zip(jobs, together, strict=True))[::4]:
        (alone,) = train([job], config)
        assert (alone.epoch, alone.epochs, alone.seed, alone.loss) == (head.epoch, head.epochs, job.seed, job.loss)
        np.testing.assert_allclose(alone.head.weight_1, head.head.weight_1, atol=1e-5)
        np.testing.assert_allclose(alone.head.reward(job.inputs.values), head.head.reward(job.inputs.values), rtol=1e-3, atol=1e-3)


def test_training_again_gives_the_same_bytes() -> None:
    inputs = learnable_inputs(N_TRAIN + N_VALIDATION, K)
    jobs = [HeadJob(inputs=inputs, seed=seed, loss="margin") for seed in range(3)]
    for one, other in zip(train(jobs), train(jobs), strict=True):
        assert all(vars(one.head)[name].tobytes() == vars(other.head)[name].tobytes() for name in vars(one.head))
    assert train(jobs)[0].head.weight_1.tobytes() != train(jobs)[1].head.weight_1.tobytes()


def test_training_stops_after_patience_and_keeps_the_best_epoch() -> None:
    inputs = learnable_inputs(N_TRAIN + N_VALIDATION, K)
    config = HeadConfig(epochs=40, hidden=32, patience=5)
    _, figures, _ = naive(inputs, 0, "margin", config)
    (head,) = train([HeadJob(inputs=inputs, seed=0, loss="margin")], config)
    gains = [i for i in range(40) if figures[i][0] > max([-1.0, *(f[0] for f in figures[:i])])]
    stop = next(i for i in range(40) if i - max(g for g in gains if g <= i) >= 5)
    assert head.epochs == stop + 1 < 40
    best = max(f[0] for f in figures[: stop + 1])
    assert head.validation_accuracy == pytest.approx(best)
    tied = [i for i in range(stop + 1) if figures[i][0] == best]
    assert head.epoch - 1 == min(tied, key=lambda i: figures[i][1])


def test_ties_on_validation_are_wrong() -> None:
    inputs = learnable_inputs(N_TRAIN + N_VALIDATION, K)
    same = replace(inputs, rejected_rows=np.where(np.arange(N_TRAIN + N_VALIDATION) >= N_TRAIN, inputs.chosen_rows, inputs.rejected_rows))
    (head,) = train([HeadJob(inputs=same, seed=0, loss="margin")])
    assert head.validation_accuracy == 0.0


def test_memory_maps_in_half_precision_can_be_trained_on(tmp_path: object) -> None:
    inputs = learnable_inputs(N_TRAIN + N_VALIDATION, K)
    half = inputs.values.astype(np.float16)
    np.save(f"{tmp_path}/v.npy", half)
    mapped = replace(inputs, values=np.load(f"{tmp_path}/v.npy", mmap_mode="r"))
    (one,) = train([HeadJob(inputs=mapped, seed=0, loss="margin")])
    (other,) = train([HeadJob(inputs=replace(inputs, values=half.astype(np.float32)), seed=0, loss="margin")])
    np.testing.assert_array_equal(one.head.weight_1, other.head.weight_1)


def test_standardisation_counts_each_pair_and_floors_the_scale() -> None:
    values = np.array([[0.0, 5.0, 0.0], [2.0, 5.0, 4.0], [4.0, 5.0, 8.0], [9.0, 9.0, 9.0]], dtype=np.float32)
    inputs = HeadInputs(values=values, chosen_rows=np.array([0, 0, 3]), rejected_rows=np.array([1, 2, 3]))
    scale = standardisation(inputs, np.array([0, 1]))
    seen = values[[0, 1, 0, 2]].astype(np.float64)
    np.testing.assert_allclose(scale.mean, seen.mean(0))
    deviations = seen.std(0)
    np.testing.assert_allclose(scale.std, [deviations[0], FLOOR * np.median(deviations[[0, 2]]), deviations[2]])
    assert np.isfinite(scale.apply(values)).all()
    still = replace(inputs, values=np.ones_like(values))
    np.testing.assert_allclose(standardisation(still, np.array([0, 1])).std, FLOOR)


@pytest.mark.parametrize(("empty", "said"), [("train", "no training pairs"), ("validation", "no validation pairs")])
def test_an_empty_split_is_an_error(empty: str, said: str) -> None:
    job = HeadJob(inputs=learnable_inputs(10, K), seed=0, loss="margin")
    rows = {"train": np.arange(5), "validation": np.arange(5, 10)} | {empty: np.arange(0)}
    with pytest.raises(DataError, match=said) as error:
        train_heads([job], **rows, config=SHORT)
    assert "change the split ratios" in str(error.value)


def test_progress_counts_heads_and_can_cancel() -> None:
    inputs, seen = learnable_inputs(N_TRAIN + N_VALIDATION, K), []
    jobs = [HeadJob(inputs=inputs, seed=seed, loss="margin") for seed in range(2)]
    train_heads(jobs, train=TRAIN, validation=VALIDATION, config=SHORT, progress=lambda *a, **b: seen.append(a), step="controls")
    assert [a[0] for a in seen] == ["controls"] * 4 and [a[2] for a in seen] == [2] * 4
    assert [a[1] for a in seen] == pytest.approx([0.5, 1.0, 1.5, 2.0])

    def stop(step: str, done: float, total: float, **figures: object) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        train_heads(jobs, train=TRAIN, validation=VALIDATION, config=SHORT, progress=stop)


def test_parameters_at_the_papers_k() -> None:
    (head,) = train([HeadJob(inputs=learnable_inputs(N_TRAIN + N_VALIDATION, 256), seed=0, loss="margin")], HeadConfig(epochs=1))
    assert head.head.n_parameters == 132_097
    assert {name: value.shape for name, value in vars(head.head).items()} == {
        "weight_1": (512, 256), "bias_1": (512,), "weight_2": (1, 512), "bias_2": (1,),
    }  # fmt: skip
    assert {value.dtype for value in vars(head.head).values()} == {np.dtype(np.float32)}


def test_reward_by_hand() -> None:
    head = Head(
        weight_1=np.array([[1, 0], [0, -2]], dtype=np.float32),
        bias_1=np.array([0, 1], dtype=np.float32),
        weight_2=np.array([[3, 0.5]], dtype=np.float32),
        bias_2=np.array([-1], dtype=np.float32),
    )
    rewards = head.reward(np.array([[2.0, 0.0], [-2.0, -4.0]], dtype=np.float32))
    assert rewards.dtype == np.float64 and rewards.tolist() == [3 * 2 + 0.5 * 1 - 1, 0.5 * 9 - 1]
    assert len(head.reward(np.zeros((0, 2), dtype=np.float32))) == 0
    many = np.random.default_rng(0).normal(size=(9000, 2)).astype(np.float32)
    expected = np.maximum(many.astype(float) @ head.weight_1.T + head.bias_1, 0) @ head.weight_2[0] - 1
    np.testing.assert_allclose(head.reward(many), expected, atol=1e-12)


def test_folding_moves_the_standardisation_into_the_first_layer() -> None:
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(7, 4)).astype(np.float32), rng.normal(size=7).astype(np.float32)
    mean, std, v = rng.normal(size=4) * 50, rng.uniform(0.1, 9, 4), rng.normal(size=4) * 50
    folded, moved = fold(weight, bias, mean, std)
    assert folded.dtype == moved.dtype == np.float32
    np.testing.assert_allclose(folded @ v + moved, weight @ ((v - mean) / std) + bias, rtol=1e-4)


def trained(accuracy: float, loss: float) -> TrainedHead:
    empty = Head(weight_1=np.zeros((1, 1), "f4"), bias_1=np.zeros(1, "f4"), weight_2=np.zeros((1, 1), "f4"), bias_2=np.zeros(1, "f4"))
    return TrainedHead(head=empty, seed=0, loss="margin", epoch=1, epochs=1, validation_accuracy=accuracy, validation_loss=loss)


@pytest.mark.parametrize(
    ("figures", "shipped"),
    [([(0.7, 1.0), (0.8, 9.0), (0.75, 0.1)], 1), ([(0.8, 0.5), (0.8, 0.4), (0.7, 0.1)], 1), ([(0.8, 0.5), (0.8, 0.5)], 0)],
)
def test_the_shipped_seed(figures: list[tuple[float, float]], shipped: int) -> None:
    assert shipped_index([trained(*pair) for pair in figures]) == shipped


def test_margin_scale_is_logistic_regression_without_intercept() -> None:
    rng = np.random.default_rng(0)
    margins = rng.normal(0.8, 1.0, size=300) * 7
    labels = rng.integers(2, size=300)
    fitted = Logit(labels, np.where(labels == 1, margins, -margins)[:, None]).fit(disp=0)
    assert fit_margin_scale(margins) == pytest.approx(float(fitted.params[0]), rel=1e-4)
    found = minimize_scalar(lambda a: float(np.log1p(np.exp(-a * margins)).sum()), bounds=(0, 3), method="bounded", options={"xatol": 1e-9})
    assert fit_margin_scale(margins) == pytest.approx(float(found.x), rel=1e-4)
    assert fit_margin_scale(margins * 100) == pytest.approx(fit_margin_scale(margins) / 100, rel=1e-6)


def test_margin_scale_is_bounded_where_all_pairs_are_right() -> None:
    margins = np.array([1.0, 2.0, 3.0])
    assert fit_margin_scale(margins) == pytest.approx(np.log(4) / 2)
    assert 1 / (1 + np.exp(-fit_margin_scale(margins) * 2.0)) == pytest.approx(4 / 5), "(n + 1) / (n + 2) at the median"
    assert fit_margin_scale(-margins) == 0.0
    assert fit_margin_scale(np.zeros(3)) == fit_margin_scale(np.zeros(0)) == 0.0
