"""Soft labels as files: how exact they are, what reading and writing takes, and what they decide."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from nnunet_kd.distillation.soft_labels.maps import crop, finds_nothing, map_path, open_map, write_map
from nnunet_kd.losses.soft import with_background

SHAPE = (40, 6, 6)
PATCH = (8, 6, 6)


def decides_for_nothing(folder: Path, probabilities: np.ndarray, has_regions: bool) -> bool:
    write_map(folder, "a", probabilities, PATCH)
    return finds_nothing(open_map(folder, "a"), has_regions)


@pytest.mark.parametrize(
    ("first", "second", "nothing"),
    [(0.38, 0.2, True), (0.42, 0.2, False), (0.34, 0.34, False), (0.2, 0.2, True), (0.0, 0.9, False)],
)
def test_classes_against_background(tmp_path: Path, first: float, second: float, nothing: bool) -> None:
    """The largest of (background, first, second), in one voxel of the last slab."""
    probabilities = np.zeros((2, *SHAPE), np.float32)
    probabilities[:, 39, 5, 5] = first, second
    assert (int(np.argmax([1 - first - second, first, second])) == 0) is nothing
    assert decides_for_nothing(tmp_path, probabilities, has_regions=False) is nothing


@pytest.mark.parametrize(("probability", "nothing"), [(0.49, True), (0.51, False)])
def test_regions_above_a_half(tmp_path: Path, probability: float, nothing: bool) -> None:
    probabilities = np.zeros((2, *SHAPE), np.float32)
    probabilities[1, 20, 0, 0] = probability
    assert decides_for_nothing(tmp_path, probabilities, has_regions=True) is nothing


def test_a_map_is_written_in_little_more_memory_than_it_takes(tmp_path: Path) -> None:
    probabilities = np.random.default_rng(0).random((16, 32, 32, 32), np.float32)
    tracemalloc.start()
    try:
        write_map(tmp_path, "a", probabilities, (16, 16, 16))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    one_channel = probabilities[0].nbytes
    assert peak < 2 * probabilities.size + 2 * one_channel  # bytes, what is compressed of them, and one channel


def test_how_far_each_class_may_be_from_the_teacher(tmp_path: Path) -> None:
    """The bounds of docs/how-to-learn-from-soft-labels.md, and that they are reached."""
    random = np.random.default_rng(0)
    for classes in (2, 99):
        drawn = random.dirichlet(np.full(classes + 1, 0.1), SHAPE).astype(np.float32)
        foreground = np.ascontiguousarray(np.moveaxis(drawn, -1, 0)[1:])
        foreground[:, 0] = 0.4999 / 255  # all are rounded down
        foreground[:, 1] = 0.5001 / 255  # all are rounded up
        write_map(tmp_path, "a", foreground, PATCH)
        stored = crop(open_map(tmp_path, "a"), [(0, size) for size in SHAPE])
        assert np.abs(stored.numpy() - foreground).max() <= 1 / 510 + 1e-6
        found = with_background(stored[None])[0].numpy()
        np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
        error = np.abs(found[0] - (1 - foreground.sum(0)))
        assert error.max() <= classes / 510 + 1e-5
        assert error[0].min() > 0.999 * classes / 510


def test_a_patch_reads_only_the_chunks_that_it_lies_in(tmp_path: Path) -> None:
    """Whatever else is in the file may be damaged."""
    probabilities = np.random.default_rng(0).random((2, 40, 40, 40), np.float32)
    write_map(tmp_path, "a", probabilities, (16, 16, 16))
    stored = open_map(tmp_path, "a")
    chunks = np.array(stored.chunks[1:])
    assert stored.chunks[0] == 1
    assert (chunks <= 24).all()
    box = np.array([(0, 16), (3, 19), (0, 16)])
    path = map_path(tmp_path, "a")
    content = bytearray(path.read_bytes())
    grid = [2, *(-(-40 // chunks))]
    damaged = 0
    for number, (_, *place) in enumerate(np.ndindex(*grid)):
        begin = np.array(place) * chunks
        if ((begin >= box[:, 1]) | (begin + chunks <= box[:, 0])).any():
            chunk = stored.schunk.get_chunk(number)
            at = content.find(chunk)
            assert at > 0
            content[at + 32 : at + len(chunk)] = bytes(len(chunk) - 32)  # its header stays
            damaged += 1
    assert 2 <= 2 * np.prod(grid[1:]) - damaged <= 4
    del stored
    path.unlink()
    path.write_bytes(content)
    inside = tuple(slice(*bounds) for bounds in box)
    found = crop(open_map(tmp_path, "a"), box.tolist()).numpy()
    assert np.abs(found - probabilities[(slice(None), *inside)]).max() <= 1 / 510 + 1e-6
    with pytest.raises(RuntimeError):
        crop(open_map(tmp_path, "a"), [(20, 36)] * 3)
