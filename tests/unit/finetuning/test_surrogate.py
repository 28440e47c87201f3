"""The surrogate against its closed form, computed here in another way."""

import numpy as np
import pytest
import torch

from t2i_feedback.finetuning import surrogate


def data(count: int, width: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, width))
    y = x @ np.linspace(-1, 1, width) + noise * rng.normal(size=count)
    return torch.from_numpy(x), torch.from_numpy(y)


def nothing(width: int) -> surrogate.Surrogate:
    """What is known before the first answer."""
    return surrogate.fit(torch.zeros(0, width, dtype=torch.float64), torch.zeros(0, dtype=torch.float64))


def test_the_posterior_is_the_closed_form_of_a_gaussian_process():
    """It is a Gaussian process with a linear kernel: the M x M form instead of the D x D one."""
    x, y = data(12, 5, 0.3)
    new = data(4, 5, 0.0, seed=1)[0]
    alpha, beta = 0.7, 9.0
    mean, deviation = surrogate.posterior(x, y, alpha, beta).predict(new)
    a, b, t = x.numpy(), new.numpy(), y.numpy()
    gram = np.linalg.inv(a @ a.T / alpha + np.eye(12) / beta)
    expected = b @ a.T / alpha @ gram @ t
    variance = np.diag(b @ b.T / alpha - b @ a.T @ gram @ a @ b.T / alpha**2) + 1 / beta
    np.testing.assert_allclose(mean.numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(deviation.numpy(), np.sqrt(variance), rtol=1e-10)


def test_the_evidence_finds_the_noise_that_was_there():
    x, y = data(400, 5, 0.3)
    assert surrogate.fit(x, y).noise == pytest.approx(0.09, rel=0.2)


def test_the_evidence_is_largest_at_what_it_finds():
    x, y = data(40, 5, 0.3)
    found = surrogate.fit(x, y)
    beta = 1 / found.noise
    precision = torch.linalg.inv(found.covariance)
    alpha = float((precision - beta * x.T @ x).diagonal().mean())

    def evidence(alpha: float, beta: float) -> float:
        covariance = np.eye(40) / beta + x.numpy() @ x.numpy().T / alpha
        return float(-0.5 * (np.linalg.slogdet(covariance)[1] + y.numpy() @ np.linalg.solve(covariance, y.numpy())))

    best = evidence(alpha, beta)
    assert all(best > evidence(alpha * a, beta * b) for a, b in ((1.3, 1), (0.7, 1), (1, 1.3), (1, 0.7)))


def test_nothing_known_is_a_prior_without_an_opinion():
    x = data(3, 4, 0.0)[0]
    mean, deviation = surrogate.fit(
        torch.zeros(0, 4, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    ).predict(x)
    assert mean.abs().max() == 0
    torch.testing.assert_close(deviation, (1 + x.square().sum(1)).sqrt())


def test_equal_scores_make_no_number_that_is_not_finite():
    x = data(6, 4, 0.0)[0]
    found = surrogate.fit(x, torch.zeros(6, dtype=torch.float64))
    assert all(values.isfinite().all() for values in found.predict(x))


def test_what_differs_most_from_its_group_is_asked_about_first():
    new = torch.tensor([[5.0, 0], [5.0, 0.1], [5.0, -2.0], [1.0, 0], [1.0, 0.2]], dtype=torch.float64)
    assert surrogate.by_telling(nothing(2), new, ["a"] * 3 + ["b"] * 2)[0] == 2


def test_a_score_that_is_known_to_be_near_its_groups_mean_is_not_asked_about():
    """Known is that the first dimension says nothing and the second everything."""
    found = surrogate.Surrogate(torch.tensor([0.0, 3.0]), torch.eye(2) * 0.01, 0.01)
    new = torch.tensor([[9.0, 0.0], [-9.0, 0.1], [0.0, 1.0], [0.0, -1.1]])
    assert set(surrogate.by_telling(found, new, ["a"] * 4)[:2]) == {2, 3}


def test_a_score_that_nobody_can_know_yet_is_asked_about_before_one_that_is_known_to_be_middling():
    found = surrogate.Surrogate(torch.tensor([0.5, 0.0]), torch.diag(torch.tensor([0.0, 4.0])), 0.01)
    new = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    expected = [0.5**2 * 1, 4 * 1.0, 0.5**2 + 4 * 1.0]  # mean 0 of the group in both dimensions
    assert expected[2] > expected[1] > expected[0]
    assert surrogate.by_telling(found, new, ["a"] * 3) == [2, 1, 0]


@pytest.mark.parametrize(("count", "expected"), [(4, [2, 2]), (3, [2, 1]), (6, [2, 4]), (0, [0, 0])])
def test_quotas_add_up_and_a_small_group_leaves_its_part_to_the_others(count: int, expected: list[int]):
    assert list(surrogate.quotas(["a"] * 2 + ["b"] * 4, count).values()) == expected
