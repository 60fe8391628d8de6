"""The ONNX file and its JSON are enough: nnU-Net's prediction in NumPy, without PyTorch and nnU-Net being imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.deployment import segmentation

PROGRAM = """
import json, sys
from itertools import combinations, product

for name in ("torch", "nnunetv2", "nnunet_kd"):
    sys.modules[name] = None  # importing them would raise

import numpy as np
import onnxruntime
import SimpleITK as sitk
from scipy.ndimage import binary_fill_holes, gaussian_filter

onnx, output, *images = sys.argv[1:]
description = json.load(open(onnx[:-5] + ".json"))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(onnx, options)

read = [sitk.ReadImage(path) for path in images]
data = np.stack([sitk.GetArrayFromImage(image) for image in read]).astype(np.float32)
assert len(data) == len(description["channels"])
spacing = [read[0].GetSpacing()[::-1][axis] for axis in description["transpose_forward"]]
assert spacing == description["spacing"], "this program does not resample"
data = data.transpose(0, *[axis + 1 for axis in description["transpose_forward"]])

whole = data.shape[1:]
filled = binary_fill_holes((data != 0).any(axis=0))
box = tuple(slice(np.where(filled.any(axis=tuple({0, 1, 2} - {a})))[0][0],
                  np.where(filled.any(axis=tuple({0, 1, 2} - {a})))[0][-1] + 1) for a in range(3))
data = data[(slice(None), *box)]

for channel, how in zip(data, description["normalization"]):
    assert not how["use_mask"]
    if how["scheme"] == "ZScoreNormalization":
        channel[:] = (channel - channel.mean()) / max(channel.std(), 1e-8)
    elif how["scheme"] == "CTNormalization":
        known = how["intensities"]
        clipped = channel.clip(known["percentile_00_5"], known["percentile_99_5"])
        channel[:] = (clipped - known["mean"]) / max(known["std"], 1e-8)
    else:
        raise ValueError(how["scheme"])

patch = description["patch_size"]
cropped = data.shape[1:]
missing = [max(0, side - size) for side, size in zip(patch, cropped)]
data = np.pad(data, [(0, 0), *[(m // 2, m - m // 2) for m in missing]])
window = description["sliding_window"]
starts = []
for size, side in zip(data.shape[1:], patch):
    count = int(np.ceil((size - side) / (side * window["step"]))) + 1
    starts.append([int(np.round((size - side) / max(count - 1, 1) * i)) for i in range(count)])
weight = np.zeros(patch)
weight[tuple(side // 2 for side in patch)] = 1
weight = gaussian_filter(weight, [side * window["gaussian_sigma"] for side in patch], mode="constant")
weight = np.maximum(weight, weight[weight > 0].min()).astype(np.float32)

mirrors = [axes for n in range(len(description["mirror_axes"]) + 1) for axes in combinations(description["mirror_axes"], n)]
total = np.zeros((description["output_channels"], *data.shape[1:]), np.float32)
weights = np.zeros(data.shape[1:], np.float32)
names = description["onnx"]
for corner in product(*starts):
    place = tuple(slice(start, start + side) for start, side in zip(corner, patch))
    tile = data[(slice(None), *place)]
    batch = np.stack([np.flip(tile, [axis + 1 for axis in axes]) for axes in mirrors])
    logits = session.run([names["output"]], {names["input"]: batch})[0]
    mean = np.mean([np.flip(one, [axis + 1 for axis in axes]) for one, axes in zip(logits, mirrors)], axis=0)
    total[(slice(None), *place)] += mean * weight
    weights[place] += weight
logits = (total / weights)[(slice(None), *[slice(m // 2, m // 2 + size) for m, size in zip(missing, cropped)])]

assert description["activation"] == "softmax"
result = np.zeros(whole, np.uint8)
result[box] = logits.argmax(axis=0)
image = sitk.GetImageFromArray(result.transpose(description["transpose_backward"]))
image.CopyInformation(read[0])
sitk.WriteImage(image, output)
loaded = {name for name in ("torch", "nnunetv2", "nnunet_kd") if sys.modules.get(name) is not None}
assert not loaded, loaded
"""


def test_numpy_and_onnxruntime_reproduce_nnunet(
    exported: Path, cases: tuple[Path, Path], stock: Path, tmp_path: Path
) -> None:
    different = []
    for case in ("case0", "case1"):
        images = [str(cases[0] / f"{case}_{channel:04d}.nii.gz") for channel in (0, 1)]
        output = tmp_path / f"{case}.nii.gz"
        command = [sys.executable, "-c", PROGRAM, str(exported), str(output), *images]
        finished = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert finished.returncode == 0, finished.stderr
        different.append(segmentation(output) != segmentation(stock / output.name))
        assert segmentation(output).max() == 2
    assert np.mean(different) <= 1e-4
