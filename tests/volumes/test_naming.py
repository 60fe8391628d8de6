"""Which files belong to a case."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nnunetv2.utilities.utils import create_lists_from_splitted_dataset_folder

from nnunet_kd.volumes.naming import channel_problem, images_in, segmentations_in, shadow_of, shadowed_by, split_channel

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".png", ".tif")
NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=12)
STATED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@STATED
@given(name=NAMES, channel=st.integers(0, 9999), ending=st.sampled_from(ENDINGS))
def test_a_name_is_taken_apart_as_it_was_put_together(name: str, channel: int, ending: str) -> None:
    assert split_channel(Path("/f") / f"{name}_{channel:04d}{ending}", ending) == (name, channel)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("places")


@STATED
@given(
    files=st.dictionaries(
        NAMES.filter(lambda name: not name.startswith(".") and len(name.encode()) < 100),
        st.sets(st.integers(0, 12), min_size=1, max_size=3),
        min_size=1,
        max_size=4,
    ),
    ending=st.sampled_from(ENDINGS),
    number=st.integers(0, 10**12),
)
def test_groups_are_what_was_written_and_nothing_else(
    files: dict[str, set[int]], ending: str, number: int, places: Path
) -> None:
    folder = places / str(number)
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    for name, channels in files.items():
        for channel in channels:
            (folder / f"{name}_{channel:04d}{ending}").touch()
            (folder / f"._{name}_{channel:04d}{ending}").touch()  # macOS
    (folder / "dataset.json").touch()
    for other in (f"other_0000{ending}.part", f"other_1{ending}", f"other_00001{ending}"):
        (folder / other).touch()
    found = images_in(folder, ending)
    assert {name: set(channels) for name, channels in found.items()} == files
    assert all(
        path.name == f"{name}_{channel:04d}{ending}" for name, group in found.items() for channel, path in group.items()
    )
    assert not any(name.startswith(".") for name in segmentations_in(folder, ending))


def test_groups_are_nnunets_own(tmp_path: Path) -> None:
    for name in ("a", "a.b", "a_0000", "0007", "Müller [1]"):
        for channel in (0, 1):
            (tmp_path / f"{name}_{channel:04d}.nii.gz").touch()
    stock = create_lists_from_splitted_dataset_folder(str(tmp_path), ".nii.gz", num_processes=1)
    ours = [[str(path) for _, path in sorted(group.items())] for group in images_in(tmp_path, ".nii.gz").values()]
    assert sorted(ours) == sorted(stock)


@STATED
@given(found=st.sets(st.integers(0, 5), min_size=1), count=st.integers(1, 4))
def test_channels_are_all_there_or_named(found: set[int], count: int) -> None:
    channels = [f"T{number}" for number in range(count)]
    problem = channel_problem("p", found, channels, ".nii.gz")
    if found == set(range(count)) or found == {0}:
        assert problem is None
        return
    assert problem is not None
    for number in set(range(count)) - found:
        assert f"p_{number:04d}.nii.gz (T{number}) is missing" in problem
    for number in found - set(range(count)):
        assert f"p_{number:04d}.nii.gz is one too many" in problem


def test_a_shadow_lies_beside_compressed_nifti_only(tmp_path: Path) -> None:
    for name in ("a.nii", "a.nii.gz", "b.nii.gz"):
        (tmp_path / name).touch()
    assert shadow_of(tmp_path / "a.nii.gz") == tmp_path / "a.nii"
    assert shadow_of(tmp_path / "a.nii") is None
    assert shadow_of(tmp_path / "b.nii.gz") is None
    assert shadowed_by(tmp_path / "b.nii") == tmp_path / "b.nii.gz"
    assert shadowed_by(tmp_path / "b.nii.gz") is None
    assert shadowed_by(tmp_path / "c.nii") is None
