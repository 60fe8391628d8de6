"""What the start inside the teacher costs: minutes and memory, beside a plain student's training step.

    python benchmarks/start.py                       # the hippocampus shape
    python benchmarks/start.py --shape brats2024     # several minutes on two cores

An untrained teacher and random patches, as many as the settings ask for: the cost does not depend on what the networks know. Each
side runs in a process of its own, which also gives its peak memory beyond the imported libraries. Loading and augmenting the
patches is not part of it. Processor seconds are those of all threads together: beside other work they say more than seconds do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils import convert_conv3d_weight_memory_format

from nnunet_kd.distillation.starts.fit import inherit
from nnunet_kd.distillation.starts.options import InheritanceSettings
from nnunet_kd.models.plans import build_meta_network, reduce_plans
from nnunet_kd.nnunet.environment import channel_names
from nnunet_kd.system.memory import forget_peak, freed_memory_kept, peak_resident_bytes, resident_bytes
from nnunet_kd.training.patches import patch_count
from nnunet_kd.workflows.bench.pair import HIPPOCAMPUS, Shape
from nnunet_kd.workflows.bench.rows import PLAIN_STUDENT
from nnunet_kd.workflows.bench.size import REDUCTION, measure_here

SIDES = ("start", "plain step")


def start(shape: Shape, device: torch.device) -> dict[str, Any]:
    """Seconds, peak memory and patches of one start."""
    plans, settings = shape.plans, InheritanceSettings()
    channels, heads = len(channel_names(shape.dataset_json)), len(shape.dataset_json["labels"])
    before = resident_bytes()
    torch.manual_seed(0)
    networks = [
        build_meta_network(own, shape.configuration_name, channels, heads).to_empty(device=device)
        for own in (plans, reduce_plans(plans, REDUCTION))
    ]
    for network in networks:
        for name, parameter in network.named_parameters():
            torch.nn.init.normal_(parameter, std=0.05)
            if ".norm." in name and name.endswith("weight"):
                torch.nn.init.ones_(parameter)
    patch = shape.configuration["patch_size"]
    count = patch_count(settings.voxels, tuple(patch))
    patches = [torch.randn(1, channels, *patch) for _ in range(count)]
    if device.type == "cpu":  # as trainers have their student
        convert_conv3d_weight_memory_format(networks[1], torch.channels_last_3d)
    forget_peak()
    began, busy = time.perf_counter(), time.process_time()
    inherit(networks[0], networks[1], patches, settings)
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    cuda = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(device) if cuda else peak_resident_bytes() - before
    return {"seconds": seconds, "processor seconds": busy, "peak bytes": peak, "patches": count}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default=HIPPOCAMPUS, help="as of nnunet-kd bench step")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape, device = Shape(options.shape), torch.device(options.device)
    if options.side:
        with freed_memory_kept(device.type == "cpu"):  # as in a training
            print(
                json.dumps(
                    start(shape, device) if options.side == SIDES[0] else measure_here(PLAIN_STUDENT, shape, device)
                )
            )
        return
    found = {}
    for side in SIDES:
        command = [sys.executable, __file__, "--shape", options.shape, "--device", options.device, "--side", side]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found[side] = json.loads(output.strip().splitlines()[-1])
    threads = torch.get_num_threads()
    print(f"{options.shape}, {options.device}, {threads} threads, {found['start']['patches']} patches")
    for side, values in found.items():
        busy = f" ({values['processor seconds']:.1f} s of processors)" if "processor seconds" in values else ""
        print(f"{side}: {values['seconds']:.1f} s{busy}, {values['peak bytes'] / 2**30:.2f} GiB")
    ratio = found["start"]["peak bytes"] / found["plain step"]["peak bytes"]
    print(f"memory of the start over that of the step: {ratio:.2f}")
    if options.json:
        options.json.write_text(json.dumps({"shape": options.shape, "threads": threads, **found}, indent=1))


if __name__ == "__main__":
    main()
