"""The ``kd-segment`` command. What it needs is imported after the arguments are read, so that ``--help`` is quick."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nnunet_kd_runtime import __version__
from nnunet_kd_runtime.counts import counted
from nnunet_kd_runtime.errors import MissingRequirement, SegmentationError


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: errors made for people are printed as one line and become exit codes."""
    given = parser().parse_args(arguments)
    try:
        return _run(given)
    except SegmentationError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # a folder or file that may not be read
        print(f"error: {error}", file=sys.stderr)
        return MissingRequirement.exit_code
    except KeyboardInterrupt:
        print("stopped; finished cases stay, the same command goes on with the others", file=sys.stderr)
        return 130


class ProgressLine:
    """Case, share and time left on one line of the terminal; a line a case where there is none."""

    def __init__(self) -> None:
        """Start the clock."""
        self._start = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._last = ""

    def __call__(self, name: str, done: float, total: int, kept: int) -> None:
        """See :data:`nnunet_kd_runtime.session.Progress`."""
        left = (time.monotonic() - self._start) * (total - done) / done if done else 0.0
        of_all = f"{kept + int(done + 1e-6)} of {counted(kept + total, 'case')}"
        line = f"{name}: {of_all}, {100 * done / total:.0f} %, left {_clock(left)}"
        if self._terminal:
            print(f"\r{line:<78}", end="", file=sys.stderr, flush=True)
        elif name != self._last:
            self._last = name
            print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the line."""
        if self._terminal:
            print(file=sys.stderr)


def _run(given: argparse.Namespace) -> int:
    from nnunet_kd_runtime.session import Options, run

    options = Options(
        backend=given.backend,
        device=given.device,
        threads=given.threads,
        mirroring=not given.no_mirroring,
        step=given.step,
        probabilities=given.save_probabilities,
        postprocessing=given.postprocessing,
        overwrite=given.overwrite,
        previous_stage=given.previous_stage,
        memory=given.memory,
    )
    progress = ProgressLine()
    try:
        counts = run(given.model, given.images, given.output, options, progress)
    finally:
        progress.end()
    kept = f"; {counts.kept} kept from before (--overwrite predicts all again)" if counts.kept else ""
    print(f"{counted(counts.predicted, 'case')} segmented with {given.backend}{kept}: {given.output}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line, which docs/reference-commands.md describes, too."""
    made = argparse.ArgumentParser(
        prog="kd-segment",
        description="Segment images with a student that nnunet-kd exported, as nnU-Net would, without PyTorch and nnU-Net. "
        "Cases that have their segmentation already are skipped.",
    )
    made.add_argument(
        "model", type=Path, metavar="MODEL.onnx", help="of nnunet-kd export --to onnx; its JSON beside it"
    )
    made.add_argument(
        "images",
        type=Path,
        nargs="+",
        metavar="IMAGE",
        help="folders of CASE_0000... files, or files; of several channels CASE_0000 alone is enough",
    )
    made.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="folder; for one case also a file"
    )
    made.add_argument(
        "--backend",
        choices=("onnxruntime", "openvino"),
        default="onnxruntime",
        help="what runs the network (default: onnxruntime)",
    )
    made.add_argument(
        "--device", "-device", choices=("cpu", "cuda"), default="cpu", help="where the network runs (default: cpu)"
    )
    made.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: all cores)")
    made.add_argument(
        "--no-mirroring",
        "--disable_tta",
        action="store_true",
        help="no averaging over mirrored images: faster, less exact",
    )
    made.add_argument(
        "--step-size",
        "-step_size",
        "--step",
        dest="step",
        type=_share,
        default=0.5,
        metavar="SHARE",
        help="distance of patches / patch size (default: 0.5)",
    )
    made.add_argument(
        "--save-probabilities",
        "--save_probabilities",
        "--npz",
        action="store_true",
        help="also write probabilities, as nnU-Net does",
    )
    made.add_argument(
        "--postprocessing", action="store_true", help="apply the model's own, found by nnU-Net's validation"
    )
    made.add_argument(
        "--previous-stage",
        "-prev_stage_predictions",
        type=Path,
        metavar="FOLDER",
        help="of a cascade: the first stage's segmentations",
    )
    made.add_argument(
        "--memory", type=_gibibytes, metavar="GIB", help="memory that may be used (default: what is free)"
    )
    made.add_argument("--overwrite", action="store_true", help="segment again what is already there")
    made.add_argument("--version", action="version", version=f"nnunet-kd-runtime {__version__}")
    return made


def _positive(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(text)


def _share(text: str) -> float:
    number = _number(text)
    if not 0.05 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must lie between 0.05 and 1, got {text}")
    return number


def _gibibytes(text: str) -> float:
    number = _number(text)
    if not 0 < number < 1e9:  # infinity and what is no number, too
        raise argparse.ArgumentTypeError(f"must be a positive number of GiB, got {text}")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text}") from None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def entry() -> None:
    """The installed command."""
    sys.exit(main())


if __name__ == "__main__":
    sys.exit(main())
