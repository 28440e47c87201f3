import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from t2i_feedback.evaluation import extractors, fidelity
from t2i_feedback.evaluation.fidelity import FrechetDistance


def features(n: int, dimensions: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Correlated positive rows, as a network's pooled activations are."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(dimensions, dimensions)) / np.sqrt(dimensions)
    return np.maximum(rng.normal(shift, 1, (n, dimensions)) @ mix, 0).astype(np.float32)


def by_square_root(features: np.ndarray, reference: np.ndarray) -> float:
    """The definition, with scipy's matrix square root."""
    means = [rows.mean(axis=0, dtype=np.float64) for rows in (features, reference)]
    one, two = (np.cov(rows.astype(np.float64), rowvar=False) for rows in (features, reference))
    root = scipy.linalg.sqrtm(one @ two).real
    return float(((means[0] - means[1]) ** 2).sum() + np.trace(one + two - 2 * root))


@pytest.mark.parametrize(("n", "m", "dimensions"), [(30, 40, 96), (40, 200, 96), (200, 40, 96), (300, 400, 24)])
def test_frechet_distance_is_torch_fidelitys(n: int, m: int, dimensions: int) -> None:
    one, two = features(n, dimensions, 1, shift=0.3), features(m, dimensions, 2)
    statistics = [fid_features_to_statistics(torch.from_numpy(rows).double()) for rows in (one, two)]
    expected = next(iter(fid_statistics_to_metric(*statistics, verbose=False).values()))
    assert FrechetDistance(one, two)() == pytest.approx(expected, rel=1e-5)


def test_frechet_distance_is_the_definition_with_a_matrix_square_root() -> None:
    one, two = features(300, 24, 1, shift=0.5), features(250, 24, 2)
    assert FrechetDistance(one, two)() == pytest.approx(by_square_root(one, two), rel=1e-8)


def test_frechet_distance_to_itself_is_zero() -> None:
    rows = features(60, 128, 3)
    assert FrechetDistance(rows, rows)() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("n", [20, 90])
def test_a_resample_has_the_distance_of_its_copied_rows(n: int) -> None:
    one, two = features(n, 48, 4), features(70, 48, 5, shift=0.2)
    chosen = np.random.default_rng(0).integers(0, n, n)
    expected = FrechetDistance(one[chosen], two)()
    assert FrechetDistance(one, two)(np.bincount(chosen, minlength=n)) == pytest.approx(expected, rel=1e-7)


def test_resamples_of_two_arms_are_paired_by_their_generator() -> None:
    one, two, real = features(50, 16, 6), features(50, 16, 6, shift=0.05), features(80, 16, 7)
    a, b = (FrechetDistance(rows, real).resample(200, np.random.default_rng(1)) for rows in (one, two))
    assert np.std(a - b) < np.std(a) / 2
    assert np.array_equal(a, FrechetDistance(one, real).resample(200, np.random.default_rng(1)))


def test_inception_score_has_its_known_ends() -> None:
    sure = np.full((100, 10), -50, dtype=np.float32)
    sure[np.arange(100), np.arange(100) % 10] = 50
    assert fidelity.inception_score(sure, splits=1, seed=0).value == pytest.approx(10, rel=1e-6)
    alike = np.tile(np.arange(10, dtype=np.float32), (100, 1))
    assert fidelity.inception_score(alike, splits=5, seed=0) == fidelity.Spread(pytest.approx(1), pytest.approx(0))


def test_kernel_distance_is_near_zero_for_one_distribution_and_positive_for_two() -> None:
    one, same, other = features(200, 32, 8), features(200, 32, 9), features(200, 32, 10, shift=1)
    near = fidelity.kernel_distance(one, same, subset=100, subsets=20, seed=0)
    far = fidelity.kernel_distance(one, other, subset=100, subsets=20, seed=0)
    assert abs(near.value) < 3 * near.std < far.value


def test_precision_and_recall_tell_fidelity_from_coverage() -> None:
    rng = np.random.default_rng(0)
    real = np.concatenate([rng.normal(0, 1, (100, 4)), rng.normal(50, 1, (100, 4))]).astype(np.float32)
    half = rng.normal(0, 1, (100, 4)).astype(np.float32)
    precision, recall = fidelity.precision_recall(half, real, neighbourhood=3)
    assert precision > 0.8
    assert 0.3 < recall <= 0.5


def test_diversity_is_the_mean_over_all_pairs() -> None:
    rows = features(12, 8, 11) + np.float32(0.1)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = [1 - unit[i] @ unit[j] for i in range(12) for j in range(i)]
    assert fidelity.diversity(rows) == pytest.approx(np.mean(pairs), abs=1e-6)
    assert fidelity.diversity(np.tile(rows[:1], (5, 1))) == pytest.approx(0, abs=1e-6)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(10):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return sorted(folder.glob("*.png"))


def test_efficientnet_gives_features_and_logits_in_the_order_of_the_files(pictures) -> None:
    extractor = extractors.load("efficientnet-lite0", "cpu")
    found = extractors.extract(pictures, extractor, 64)
    assert (found.features.shape, found.logits.shape) == ((10, 1280), (10, 1000))
    assert found.features.dtype == found.logits.dtype == np.float32
    again = extractors.extract(pictures[::-1], extractor, 64)
    assert np.allclose(again.features[::-1], found.features, atol=1e-4)
    with torch.inference_mode():
        logits = extractor.network._fc(torch.from_numpy(found.features))
    assert np.allclose(logits.numpy(), found.logits, atol=1e-4)


def test_efficientnet_recognises_a_photograph() -> None:
    """The weights, their normalisation and the channels' order are right: a cat is a cat (classes 281 to 285)."""
    skimage_data = pytest.importorskip("skimage.data")
    cat = torch.from_numpy(skimage_data.chelsea()).permute(2, 0, 1)[None, :, :, 75:375]
    with torch.inference_mode():
        _, logits = extractors.load("efficientnet-lite0", "cpu")(cat)
    assert logits.softmax(1)[0, 281:286].sum() > 0.5


def test_images_of_other_sizes_are_cropped_to_their_centre(tmp_path) -> None:
    wide = np.zeros((32, 96, 3), dtype=np.uint8)
    wide[:, 32:64] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert np.array_equal(extractors.read_square(tmp_path / "wide.png", 32), np.full((32, 32, 3), 200))
    assert extractors.read_square(tmp_path / "wide.png", 16).shape == (16, 16, 3)


def test_inception_that_cannot_be_fetched_is_one_line_with_the_way_out(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(extractors, "URL_INCEPTION_V3", "http://127.0.0.1:9/weights-inception-2015-12-05-6726825d.pth")
    with pytest.raises(extractors.UserError, match="efficientnet-lite0") as caught:
        extractors.load("inception-v3-compat", "cpu")
    assert "\n" not in str(caught.value)


class BlankInception(FeatureExtractorInceptionV3):
    """torch-fidelity's network with random weights: the real ones are a download."""

    def load_state_dict(self, *_, **__) -> None:
        pass


def test_inception_gives_its_own_layers_once_the_weights_are_there(tmp_path, monkeypatch, pictures) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.save({}, tmp_path / "empty.pth")
    blank = BlankInception("blank", ["2048"], feature_extractor_weights_path=tmp_path / "empty.pth")
    torch.save(blank.state_dict(), checkpoints / extractors.URL_INCEPTION_V3.rpartition("/")[2])
    found = extractors.extract(pictures[:2], extractors.load("inception-v3-compat", "cpu"), 64)
    assert (found.features.shape, found.logits.shape) == ((2, 2048), (2, 1008))
