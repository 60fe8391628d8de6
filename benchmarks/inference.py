"""Time and memory of prediction on the CPU: teacher and student by stock nnU-Net, and the student by every backend.

    python benchmarks/inference.py --teacher FOLDER --student FOLDER --images FOLDER     # real cases, trained models
    python benchmarks/inference.py --brats                                               # untrained networks, BraTS's patch
    python benchmarks/inference.py ... --profile                                         # where a stock prediction's time goes

All ways run in one call and in turn (a b c, a b c), each in a process of its own, which also gives its peak memory.
``whole`` counts from the loaded model to the last written file and is divided by the cases; for stock nnU-Net that holds the
start of its two worker processes, as ``nnUNetv2_predict -npp 1 -nps 1`` does. ``network`` is the sliding window alone, median
case; its CPU seconds (all threads) are what to compare on a machine that others use too, with ``--threads 1``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from nnunet_kd.system.cores import usable_cores

WAYS = ("teacher, stock", "student, stock", "student, torch", "student, onnxruntime", "student, openvino")
RUNTIME_WAYS = (
    *WAYS[:4], "student, runtime onnxruntime", WAYS[4], "student, runtime openvino"
)  # fmt: skip
"""Each of the runtime's beside the one it is compared with."""
BRATS_DATASET = {
    "channel_names": {"0": "t1c", "1": "t1n", "2": "t2f", "3": "t2w"},
    "labels": {"background": 0, "NETC": 1, "SNFH": 2, "ET": 3, "RC": 4},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--student", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--cases", type=int, default=4, help="images to predict")
    parser.add_argument("--brats", action="store_true", help="untrained networks and one random image of one patch")
    parser.add_argument("--no-mirroring", action="store_true")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--runtime", type=Path, help="interpreter of an environment with nnunet-kd-runtime[openvino]: its ways too"
    )
    parser.add_argument("--ways", help="separated by semicolons; default: all")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    """See the module."""
    options = parse()
    options.ways = options.ways or ";".join(RUNTIME_WAYS if options.runtime else WAYS)
    if options.worker:
        print(json.dumps(work(json.loads(options.worker))))
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        if options.brats:
            options.teacher, options.student, options.images = brats(root)
        elif not (options.teacher and options.student and options.images):
            sys.exit("give --teacher, --student and --images, or --brats")
        images = first_cases(options.images, root / "images", options.cases)
        if options.profile:
            for name in ("teacher", "student"):
                print(f"\n{name}\n{profile(getattr(options, name), images, options)}")
            return
        onnx = root / "student.onnx"
        export(options.student, onnx)
        results = measure(options, images, onnx, root)
    report(results, options)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


def brats(root: Path) -> tuple[Path, Path, Path]:
    """Model folders of the paper's teacher and its r=4 student with random weights, and a random image of one patch."""
    import numpy as np
    import SimpleITK as sitk

    from nnunet_kd.models.plans import read_plans, reduce_plans
    from nnunet_kd.system.shipped import shipped_folder
    from nnunet_kd.workflows.bench.pair import nnunet_folders, write_untrained_teacher

    plans = read_plans(shipped_folder("plans") / "reference" / "brats2024.json")
    plans.setdefault("experiment_planner_used", "ExperimentPlanner")
    plans.setdefault("label_manager", "LabelManager")
    plans["foreground_intensity_properties_per_channel"] = {str(channel): {} for channel in range(4)}
    folders = []
    for name, own in (("teacher", plans), ("student", reduce_plans(plans, 4))):
        with nnunet_folders(root / name):
            folders.append(write_untrained_teacher(own, "3d_fullres", BRATS_DATASET))
    generator = np.random.default_rng(0)
    images = root / "brats"
    images.mkdir()
    for channel in range(4):
        values = generator.standard_normal(plans["configurations"]["3d_fullres"]["patch_size"]).astype(np.float32)
        sitk.WriteImage(sitk.GetImageFromArray(values), str(images / f"brats_{channel:04d}.nii.gz"))
    return folders[0], folders[1], images


def first_cases(source: Path, target: Path, count: int) -> Path:
    """Links to the first cases' images."""
    target.mkdir()
    names = sorted({path.name.rsplit("_", 1)[0] for path in source.iterdir()})[:count]
    for path in source.iterdir():
        if path.name.rsplit("_", 1)[0] in names:
            (target / path.name).symlink_to(path.resolve())
    return target


def export(model: Path, onnx: Path) -> None:
    """The student as ONNX."""
    from nnunet_kd.export.onnx_export import OnnxOptions, export_onnx
    from nnunet_kd.models.folder import open_model

    with open_model(model) as found:
        for line in export_onnx(found, onnx, OnnxOptions()).lines():
            print(line)


def measure(options: argparse.Namespace, images: Path, onnx: Path, root: Path) -> dict[str, list[dict[str, Any]]]:
    """Every way ``repeats`` times, in turn."""
    ways = options.ways.split(";")
    results: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(options.threads),
        "nnUNet_def_n_proc": str(max(options.threads, 1)),
    }
    for repeat in range(options.repeats):
        for way in ways:
            of, how = way.split(", ")
            model = onnx if how.endswith(("onnxruntime", "openvino")) else getattr(options, of)
            output = root / "out" / way.replace(", ", "_") / str(repeat)
            task = {
                "model": str(model), "how": how, "images": str(images), "output": str(output),
                "threads": options.threads, "mirroring": not options.no_mirroring,
            }  # fmt: skip
            program = [options.runtime, Path(__file__).with_name("runtime_cases.py")] if how.startswith("runtime ") else [
                sys.executable, __file__, "--worker",
            ]  # fmt: skip
            command = [*map(str, program), json.dumps(task)]
            finished = subprocess.run(command, capture_output=True, text=True, env=environment)
            if finished.returncode:
                sys.exit(finished.stderr)
            result = json.loads(finished.stdout.splitlines()[-1])
            result["agreement"] = agreement(root / "out" / "student_stock" / "0", output) if of == "student" else None
            results[way].append(result)
            print(f"{way}: {result}", flush=True)
    return results


def work(task: dict[str, Any]) -> dict[str, Any]:
    """Predict once; runs in a process of its own."""
    import torch

    from nnunet_kd.inference.session import RunOptions, open_predictor
    from nnunet_kd.system.memory import peak_resident_bytes

    torch.set_num_threads(task["threads"])
    output = Path(task["output"])
    output.mkdir(parents=True)
    network: list[float] = []
    processor: list[float] = []

    def time_network(predictor: Any) -> None:
        predict = predictor.predict_logits_from_preprocessed_data

        def timed(data: torch.Tensor) -> torch.Tensor:
            start, busy = time.perf_counter(), time.process_time()
            logits: torch.Tensor = predict(data)
            network.append(time.perf_counter() - start)
            processor.append(time.process_time() - busy)
            return logits

        predictor.predict_logits_from_preprocessed_data = timed

    if task["how"] == "stock":
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        with contextlib.redirect_stdout(io.StringIO()):
            stock = nnUNetPredictor(device=torch.device("cpu"), use_mirroring=task["mirroring"], allow_tqdm=False)
            stock.initialize_from_trained_model_folder(task["model"], None, "checkpoint_final.pth")
            time_network(stock)
            start = time.perf_counter()
            stock.predict_from_files(
                task["images"], str(output), num_processes_preprocessing=1, num_processes_segmentation_export=1
            )
    else:
        from nnunet_kd.inference.cases import find_cases

        chosen = RunOptions(backend=task["how"], mirroring=task["mirroring"], threads=task["threads"])
        with open_predictor(Path(task["model"]), chosen) as opened:
            predictor = opened.predictor
            time_network(predictor)
            start = time.perf_counter()
            for _ in predictor.predict_cases(find_cases([Path(task["images"])], output, predictor.dataset_json)):
                pass
    whole = time.perf_counter() - start
    return {
        "whole": whole / len(network),
        "network": statistics.median(network),
        "cpu": statistics.median(processor),
        "peak": peak_resident_bytes(),
    }


def agreement(first: Path, second: Path) -> float:
    """Share of equal voxels."""
    import numpy as np
    import SimpleITK as sitk

    same = []
    for path in sorted(first.glob("*.nii.gz")):
        pair = [sitk.GetArrayFromImage(sitk.ReadImage(str(folder / path.name))) for folder in (first, second)]
        same.append((pair[0] == pair[1]).ravel())
    return float(np.mean(np.concatenate(same)))


def report(results: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    """The table: medians, and how many times faster than stock nnU-Net with the teacher and with the student."""
    median = {
        way: {key: statistics.median(run[key] for run in runs) for key in ("whole", "network", "cpu", "peak")}
        for way, runs in results.items()
    }
    print(f"\n{options.threads} threads, median of {options.repeats} runs, mirroring {not options.no_mirroring}\n")
    columns = ("whole, s/case", "network, s/case", "network, CPU s/case", "peak memory")
    print(f"| | {' | '.join(columns)} | x teacher, stock | x student, stock | voxels |\n|-|-|-|-|-|-|-|-|")
    for way, row in median.items():
        ratios = [
            " / ".join(f"{median[base][key] / row[key]:.1f}" for key in ("whole", "network", "cpu"))
            if base in median
            else "-"
            for base in WAYS[:2]
        ]
        alike = [run["agreement"] for run in results[way] if run["agreement"] is not None]
        voxels = f"{100 * min(alike):.4f}%" if alike else "-"
        times = " | ".join(f"{row[key]:.3f}" for key in ("whole", "network", "cpu"))
        print(f"| {way} | {times} | {row['peak'] / 2**20:.0f} MiB | {ratios[0]} | {ratios[1]} | {voxels} |")


def profile(model: Path, images: Path, options: argparse.Namespace) -> str:
    """Seconds of one case's parts in stock code, and PyTorch's operators inside one pass of the network."""
    import torch
    from nnunetv2.inference.export_prediction import export_prediction_from_logits
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    from nnunet_kd.inference.cases import find_cases
    from nnunet_kd.inference.session import RunOptions, open_predictor

    torch.set_num_threads(options.threads)
    lines = []
    with (
        open_predictor(model, RunOptions(threads=options.threads, mirroring=not options.no_mirroring)) as opened,
        tempfile.TemporaryDirectory() as temporary,
    ):
        predictor = opened.predictor
        case = find_cases([images], Path(temporary), predictor.dataset_json)[0]
        clock = [time.perf_counter()]
        item = predictor.preprocess(case)
        clock.append(time.perf_counter())
        logits = predictor.predict_logits_from_preprocessed_data(item["data"]).numpy()
        clock.append(time.perf_counter())
        export_prediction_from_logits(
            logits, item["data_properties"], predictor.configuration_manager, predictor.plans_manager,
            predictor.dataset_json, f"{temporary}/{case.name}",
        )  # fmt: skip
        clock.append(time.perf_counter())
        for name, start, end in zip(("preprocessing", "sliding window", "export"), clock, clock[1:], strict=False):
            lines.append(f"{name}: {end - start:.3f} s")
        patch = torch.randn(1, predictor.input_channels, *predictor.configuration_manager.patch_size)
        with torch.inference_mode(), torch_profile(activities=[ProfilerActivity.CPU]) as recorded:
            start = time.perf_counter()
            predictor.network(patch)
            lines.append(f"one pass of the network: {time.perf_counter() - start:.3f} s")
    lines.append(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=8, max_name_column_width=40))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
