"""The calls of the NSD pre-extraction's guide, in its order, on images and models written here."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from f3rm.errors import DatasetError
from f3rm.recipes import algonauts_dataset
from f3rm.scripts.command import run_command
from f3rm.scripts.systems.nsd import Nsd
from tests.recipes.test_nsd_features import IMAGENET, reference_input, reference_network
from tests.systems.shell import run_script
from tests.systems.table import shows

SIDE = 425  # pixels of NSD's images: 31 x 31 patches of 14, the last ones padded


@pytest.fixture
def data(tmp_path, write_images):
    """Two subjects; the second has no test images."""
    for subject in ("01", "02"):
        own = tmp_path / "data" / f"subj{subject}"
        names = ["b.png", "a.png"]
        write_images(names, (SIDE, SIDE), own / "training_split" / "training_images")
    write_images(
        ["z.png"], (SIDE, SIDE), tmp_path / "data" / "subj01" / "test_split" / "test_images"
    )
    return tmp_path / "data"


def nsd(*words: object) -> int:
    return run_command(Nsd, [str(word) for word in words])


def extract(data: Path, out: Path, weights: object, *words: object) -> int:
    options = ("--data_dir", data, "--output_dir", out, "--device", "cpu", "--weights", weights)
    return nsd(*options, *words)


@shows(
    "`extract_features_new.py --data_dir DIR --output_dir DIR --subj 01 --backbone "
    "dinov2_q --batch_size 16 --device cuda --enc_layer -1`",
)
@shows(
    "the same, from Python",
    '`extract_nsd(subject, out, nsd_spec("dinov2_q", weights=dinov2), "dinov2_q_last", '
    'subjects=["01"])`',
)
@shows("`train.npy` (N, 962, 768): class token, then 31 x 31 patches of 425 x 425 pixels")
@shows("962 tokens of 425 x 425 pixels", '`nsd_spec("dinov2_q", geometry="pad")`')
@shows("257 tokens of 224 x 224 pixels", '`nsd_spec("dinov2_q", geometry="stretch")`')
@shows("`np.load(...)`", '`np.load(out / "dinov2_q_last" / "01" / "train.npy")`')
@shows("`--device cuda` without a GPU", "computes on the CPU, with a warning")
def test_the_basic_command_writes_the_guides_files(data, tmp_path, dinov2_folder):
    printed = run_script(
        "examples/extract_features_new.py",
        *("--data_dir", data / "subj01", "--output_dir", tmp_path / "features", "--subj", "01"),
        *("--backbone", "dinov2_q", "--batch_size", 16, "--device", "cuda", "--enc_layer", -1),
        *("--weights", dinov2_folder),
        cwd=tmp_path,
    )
    assert "2 images of shape (962, 32)" in printed
    train_feats = np.load(tmp_path / "features/dinov2_q_last/01/train.npy")
    assert train_feats.shape == (2, 962, 32)
    assert train_feats.dtype == np.float32
    assert np.load(tmp_path / "features/dinov2_q_last/01/synt.npy").shape == (1, 962, 32)


@shows("`--backbone dinov2`: tokens after the final norm")
@shows(
    "`--backbone dinov2 --enc_layer 1`",
    '`extract_nsd(subject, out, nsd_spec("dinov2", enc_layer=1, weights=dinov2), "dinov2_1")`',
)
def test_dinov2_equals_transformers_own_tokens(data, tmp_path, dinov2_folder):
    assert extract(data / "subj01", tmp_path, dinov2_folder, "--backbone", "dinov2") == 0
    found = np.load(tmp_path / "dinov2_last/01/train.npy")
    path = data / "subj01/training_split/training_images/a.png"
    with torch.no_grad():
        expected = reference_network(dinov2_folder)(reference_input(path, IMAGENET))
    np.testing.assert_allclose(found[0], expected.last_hidden_state[0], atol=1e-4)


@shows(
    "`for subj in 01 02; do ... done`; several subjects at once",
    "as written, or `--subj 01 02` in one call",
)
def test_every_subject_in_one_call_or_one_by_one(data, tmp_path, dinov2_folder, caplog):
    assert extract(data, tmp_path / "both", dinov2_folder, "--subj", "01", "02") == 0
    assert "Subject 02 has no images for synt.npy" in caplog.text
    for subj in ("01", "02"):
        own = data / f"subj{subj}"
        assert extract(own, tmp_path / "each", dinov2_folder, "--subj", subj) == 0
        files = [tmp_path / name / f"dinov2_q_last/{subj}/train.npy" for name in ("both", "each")]
        assert files[0].read_bytes() == files[1].read_bytes()


@shows("`--backbone clip`: (N, 257, 768), the class token projected, then 16 x 16 patches")
@shows(
    "the same, from Python",
    '`extract_nsd(subject, out, nsd_spec("clip", weights=clip), "clip_vit_512")`',
)
@shows("`algonauts_dataset`: `saved_feats dinov2q`, `clip`; maps (768, 31, 31)")
@shows("`cat_clip`: CLIP's vector beside every cell of DINOv2's map")
@shows(
    "the same, of stores",
    '`NsdDataset(TapStore.open(out / "dinov2_q_last/01/store", "train"), '
    'TapStore.open(out / "clip_vit_512/01/store", "train"))`',
)
@shows(
    "features on the fly",
    '`NsdDataset(LiveSource(FeatureExtractor(nsd_spec("dinov2_q", weights=dinov2)), '
    'nsd_items(subject, "01", "train")))`',
)
def test_saved_features_are_maps_with_clips_vector(data, tmp_path, dinov2_folder, clip_folder):
    assert extract(data, tmp_path, dinov2_folder) == 0
    small = ("--backbone", "clip", "--geometry", "stretch")
    assert extract(data, tmp_path, f"CLIP={clip_folder}", *small) == 0
    saved = np.load(tmp_path / "dinov2_q_last/01/train.npy")
    clip = np.load(tmp_path / "clip_vit_512/01/train.npy")
    assert clip.shape == (2, 257, 32)

    idx = 1
    img = torch.tensor(saved[idx])
    img = torch.reshape(img[1:, :], (31, 31, 32)).permute(2, 0, 1)
    alone = algonauts_dataset("dinov2q", tmp_path, 1, cat_clip=False)
    torch.testing.assert_close(alone[idx], img)
    both = algonauts_dataset("dinov2q", tmp_path, "01")
    assert both[idx].shape == (32 + 32, 31, 31)
    torch.testing.assert_close(both[idx][:32], img)
    vector = torch.tensor(clip[idx, 0])
    torch.testing.assert_close(both[idx][32:], vector[:, None, None].expand(-1, 31, 31))
    only = algonauts_dataset("clip", tmp_path, "01", idxs=[1])
    torch.testing.assert_close(only[0], both[idx][32:])
    (batch,) = DataLoader(both, batch_size=2)
    assert batch.shape == (2, 64, 31, 31)


@shows(
    "`main.py --saved_feats dinov2q --saved_feats_dir DIR ...`",
    "not here: it trains on NSD's recordings, which need an agreement; its inputs are those above",
)
def test_a_readout_learns_from_saved_features(tmp_path):
    """Two responses that are means of a channel: a linear readout of the maps finds them."""
    rng = np.random.default_rng(0)
    (tmp_path / "dinov2_q_last/01").mkdir(parents=True)
    saved = rng.normal(size=(16, 10, 4)).astype(np.float32)
    np.save(tmp_path / "dinov2_q_last/01/train.npy", saved)
    loader = DataLoader(algonauts_dataset("dinov2q", tmp_path, 1, cat_clip=False), batch_size=16)
    readout = torch.nn.Linear(4, 2)
    optimiser = torch.optim.Adam(readout.parameters(), lr=0.1)
    loss = torch.tensor(torch.inf)
    for _ in range(200):
        for maps in loader:
            assert maps.shape == (16, 4, 3, 3)
            found, responses = readout(maps.mean((2, 3))), maps[:, :2].mean((2, 3))
            loss = torch.nn.functional.mse_loss(found, responses)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    assert loss < 1e-3


@shows("files that the original program wrote", "are read")
def test_files_of_the_original_with_global_vectors_are_read(tmp_path):
    """The consumer's own CLIP file has a vector of 512 per image."""
    rng = np.random.default_rng(0)
    for name, shape in (("dinov2_q_last", (3, 962, 8)), ("clip_vit_512", (3, 512))):
        (tmp_path / name / "01").mkdir(parents=True)
        np.save(tmp_path / name / "01/train.npy", rng.normal(size=shape).astype(np.float32))
    assert algonauts_dataset("dinov2q", tmp_path, 1)[2].shape == (8 + 512, 31, 31)
    assert algonauts_dataset("clip", tmp_path, 1)[0].shape == (512, 31, 31)


@shows("a subject, folder or layer that is not there; a broken image", "named, nothing is written")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--subj", "09"), "No subject '09' in .*got subj01, subj02"),
        (("--subj", "../01"), "A subject must be a number"),
        (("--data_dir", "nowhere"), "No such folder: 'nowhere'"),
        (("--enc_layer", "7"), "'7'"),
    ],
)
def test_bad_choices_are_named(data, tmp_path, dinov2_folder, capsys, words, message):
    assert extract(data, tmp_path / "out", dinov2_folder, *words) == 1
    found = capsys.readouterr().err
    assert "Traceback" not in found
    assert re.search(message, found), found


def test_an_empty_folder_and_a_broken_image_are_named(data, tmp_path, dinov2_folder, capsys):
    images = data / "subj02/training_split/training_images"
    (images / "c.png").write_bytes((images / "a.png").read_bytes()[:200])
    assert extract(data, tmp_path / "out", dinov2_folder, "--subj", "02") == 1
    assert "c.png" in capsys.readouterr().err
    for path in images.glob("*.png"):
        path.unlink()
    assert extract(data, tmp_path / "out", dinov2_folder, "--subj", "02") == 1
    assert "No *.png files in" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("train.npy"))


def test_one_subjects_folder_is_not_taken_for_another(data, tmp_path, dinov2_folder, capsys):
    assert extract(data / "subj02", tmp_path / "out", dinov2_folder, "--subj", "01") == 1
    assert "No subject '01' in" in capsys.readouterr().err
    (data / "subj02").rename(tmp_path / "mine")
    assert extract(tmp_path / "mine", tmp_path / "out", dinov2_folder, "--subj", "1", "2") == 1
    assert "per subject" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("saved_feats", "message"), [("resnet", "dinov2q, dinov2, clip"), ("dinov2q", "f3rm nsd")]
)
def test_saved_features_that_are_not_there_are_named(tmp_path, saved_feats, message):
    with pytest.raises(DatasetError, match=message):
        algonauts_dataset(saved_feats, tmp_path, 1)


def test_features_of_other_numbers_of_images_or_shapes_are_refused(tmp_path):
    for name, shape in (("dinov2_q_last", (3, 962, 8)), ("clip_vit_512", (2, 512))):
        (tmp_path / name / "01").mkdir(parents=True)
        np.save(tmp_path / name / "01/train.npy", np.zeros(shape, np.float32))
    with pytest.raises(DatasetError, match="2 and 3 of subject 1"):
        algonauts_dataset("dinov2q", tmp_path, 1)
    np.save(tmp_path / "dinov2_q_last/01/train.npy", np.zeros(5, np.float32))
    with pytest.raises(DatasetError, match="must hold tokens or vectors"):
        algonauts_dataset("dinov2q", tmp_path, 1, cat_clip=False)
    Image.new("RGB", (4, 4)).save(tmp_path / "dinov2_q_last/01/train.npy", "PNG")
    with pytest.raises(DatasetError, match=r"is not a \.npy array"):
        algonauts_dataset("dinov2q", tmp_path, 1, cat_clip=False)
