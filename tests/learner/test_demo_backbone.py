"""The demo backbone: its weight file, its statistics, and the command that makes it."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from artsy_ext.data import Images, load_source
from artsy_ext.demo import backbone as module
from artsy_ext.demo import load_backbone, pretrain

WEIGHTS = Path(module.__file__).parent / "weights" / module.WEIGHT_FILE


def test_weight_file_is_small_and_named_in_the_card() -> None:
    assert WEIGHTS.stat().st_size <= 1.5e6
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() == module.WEIGHT_SHA256
    assert module.WEIGHT_SHA256 in (WEIGHTS.parents[1] / "CARD.md").read_text(encoding="utf-8")


def test_backbone_is_frozen_and_gives_features() -> None:
    vit, _ = load_backbone()
    assert not vit.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in vit.parameters())
    images = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    features = vit.forward_head(vit.forward_features(images), pre_logits=True)
    assert features.shape == (3, 96)
    assert torch.equal(vit(images), features)


def test_loading_leaves_the_random_stream_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    load_backbone()
    assert torch.equal(torch.rand(3), expected)


def test_statistics_can_whiten() -> None:
    mean, covariance = load_backbone()[1]
    assert (mean.shape, covariance.shape) == ((96,), (96, 96))
    assert (mean.dtype, covariance.dtype) == (torch.float32, torch.float32)
    assert torch.equal(covariance, covariance.T)
    eigenvalues = torch.linalg.eigvalsh(covariance.double())
    # One direction is empty, because a layer norm ends in h0; all others vary.
    assert abs(eigenvalues[0]) < 1e-6
    assert eigenvalues[1] > 1e-4
    shrunk = 0.95 * covariance + 0.05 * covariance.diagonal().mean() * torch.eye(96)
    torch.linalg.cholesky(shrunk)


def test_statistics_are_those_of_the_features() -> None:
    features = torch.tensor([[0.0, 0.0], [2.0, 2.0], [10.0, 0.0], [10.0, 4.0]])
    mean, covariance = pretrain.feature_statistics(features, torch.tensor([7, 7, 1, 1]))
    assert mean.tolist() == [5.5, 1.5]
    # Around the class means (1, 1) and (10, 2): scatter [[2, 2], [2, 2]] + [[0, 0], [0, 8]], over 4 - 2.
    assert covariance.tolist() == [[1.0, 1.0], [1.0, 5.0]]


def joined(parts: Iterable[Images]) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*(part.tensors for part in parts), strict=True)
    return torch.cat(images), torch.cat(labels)


def test_digits_are_neither_too_easy_nor_too_hard() -> None:
    """Nearest class mean by cosine: what the demo's methods are to improve on."""
    vit, statistics = load_backbone()
    source, accuracies = load_source("digits"), []
    for seed in range(3):
        stream = source.stream(seed, lambda image: (image - 0.3) / 0.3)
        train, train_labels = joined(task.train for task in stream.tasks)
        test, test_labels = joined(task.test for task in stream.tasks)
        directions = F.normalize(vit(train) - statistics.mean)
        prototypes = torch.stack([directions[train_labels == c].mean(0) for c in range(stream.num_classes)])
        scores = (vit(test) - statistics.mean) @ F.normalize(prototypes).T
        accuracies.append((scores.argmax(1) == test_labels).double().mean().item())
    assert 0.78 <= sum(accuracies) / 3 <= 0.90


def test_damaged_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytearray(WEIGHTS.read_bytes())
    content[-1] ^= 1
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / module.WEIGHT_FILE).write_bytes(content)
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    with pytest.raises(OSError, match=f"is damaged: its SHA-256 must be {module.WEIGHT_SHA256}, got "):
        load_backbone()


@pytest.mark.parametrize("content", [b"", b"not a weight file", WEIGHTS.read_bytes()[:-1]])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="load_backbone: path must be a file that"):
        load_backbone(path)


def test_pretrain_repeats_for_a_seed_and_writes_a_file_that_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrain, "STATISTICS_BATCHES", 4)
    contents = []
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        path = tmp_path / name
        pretrain.main(["--steps", "2", "--seed", str(seed), "--output", str(path)])
        contents.append(path.read_bytes())
        printed = capsys.readouterr().out
        assert "step 2/2" in printed
        assert hashlib.sha256(contents[-1]).hexdigest() in printed
    first, again, other = contents
    assert first == again != other
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "first", "other"]

    vit, statistics = load_backbone(tmp_path / "first")
    assert vit(torch.zeros(1, 1, 28, 28)).shape == (1, 96)
    assert statistics.within_covariance.isfinite().all()


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--output", "missing/folder/file"]])
def test_pretrain_refuses_before_training(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        pretrain.main(arguments)
    assert f"argument {arguments[0]}" in capsys.readouterr().err


def test_pretraining_sees_letters_and_no_digits() -> None:
    assert len(set(pretrain.LETTERS)) == 52
    assert pretrain.LETTERS.isalpha()
    glyphs = pretrain.draw_glyphs()
    assert glyphs.images.shape == (52 * len(pretrain.FONTS), 1, 28, 28)
    assert glyphs.labels.bincount().tolist() == [len(pretrain.FONTS)] * 52


def test_a_character_that_the_font_lacks_is_left_out() -> None:
    glyphs = pretrain.draw_glyphs(["DejaVuSans.ttf"], "A漢B")
    assert glyphs.labels.tolist() == [0, 2]


def test_samples_are_normalised_and_follow_the_generator() -> None:
    glyphs = pretrain.draw_glyphs(["DejaVuSans.ttf"])
    images, labels = pretrain.sample_batch(glyphs, 64, torch.Generator().manual_seed(0))
    assert (images.shape, images.dtype) == ((64, 1, 28, 28), torch.float32)
    assert (labels.shape, labels.dtype) == ((64,), torch.int64)
    assert images.min() >= (0 - 0.3) / 0.3 - 1e-6
    assert images.max() <= (1 - 0.3) / 0.3 + 1e-6
    again, _ = pretrain.sample_batch(glyphs, 64, torch.Generator().manual_seed(0))
    other, _ = pretrain.sample_batch(glyphs, 64, torch.Generator().manual_seed(1))
    assert torch.equal(images, again)
    assert not torch.equal(images, other)
