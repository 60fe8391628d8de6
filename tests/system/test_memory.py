"""Resident memory of a process, now and at its highest."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nnunet_kd.system import memory
from nnunet_kd.system.memory import forget_peak, peak_resident_bytes, resident_bytes
from nnunet_kd_runtime import control_groups

MANY = 64 << 20


def test_the_peak_stays_when_memory_is_given_back_until_it_is_forgotten() -> None:
    before = resident_bytes()
    block = bytearray(MANY)
    assert resident_bytes() - before > MANY / 2
    peak = peak_resident_bytes()
    assert peak >= before + MANY / 2
    del block
    assert peak_resident_bytes() > peak - MANY / 2
    if sys.platform != "linux":
        pytest.skip("only Linux forgets a peak")
    assert forget_peak()
    assert peak_resident_bytes() < peak - MANY / 2


UNLIMITED = "9223372036854771712\n"
VERSION_1 = {
    "memory/memory.limit_in_bytes": "1000\n",
    "memory/memory.usage_in_bytes": "400\n",
    "memory/memory.stat": "inactive_file 7\ntotal_inactive_file 100\n",
}
VERSION_2 = {"memory.max": "1000\n", "memory.current": "400\n", "memory.stat": "anon 1\ninactive_file 100\n"}


def within(group: str, files: dict[str, str], root: str = "") -> dict[str, str]:
    return {f"{root}{group}/{name.removeprefix(root)}": content for name, content in files.items()}


@pytest.mark.parametrize(
    ("own", "files", "wanted"),
    [
        ("", {}, 4096),
        ("0::/\n", VERSION_2, 700),
        ("0::/\n", {**VERSION_2, "memory.max": "max\n"}, 4096),
        ("0::/\n", {**VERSION_2, "memory.max": "9999\n"}, 4096),
        ("0::/\n", {**VERSION_2, "memory.current": "2000\n"}, 0),
        ("0::/\n", {**VERSION_2, "memory.max": "not a number"}, 4096),
        ("0::/\n", {name: VERSION_2[name] for name in ("memory.max", "memory.current")}, 600),
        ("0::/job/step\n", within("job", VERSION_2), 700),
        ("0::/job/step\n", {**VERSION_2, **within("job/step", {**VERSION_2, "memory.max": "800"})}, 500),
        ("4:memory:/\n", VERSION_1, 700),
        ("4:memory:/\n", {**VERSION_1, "memory/memory.limit_in_bytes": UNLIMITED}, 4096),
        ("5:cpu,cpuacct:/elsewhere\n4:hugetlb,memory:/job/step\n0::/\n", within("job", VERSION_1, "memory/"), 700),
        ("4:memory:/docker/named outside\n", VERSION_1, 700),
    ],
)
def test_what_a_container_or_a_job_leaves(
    own: str, files: dict[str, str], wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = tmp_path / "groups"
    for name, content in files.items():
        (groups / name).parent.mkdir(exist_ok=True, parents=True)
        (groups / name).write_text(content)
    (tmp_path / "own").write_text(own)
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 4 kB\n")
    for name, path in (("CONTROL_GROUPS", groups), ("OWN_GROUPS", tmp_path / "own")):
        monkeypatch.setattr(memory, name, path)
    monkeypatch.setattr(memory, "SYSTEM_MEMORY", tmp_path / "meminfo")
    assert memory.available_bytes() == wanted
    for name, path in (("ROOT", groups), ("OWN", tmp_path / "own")):
        monkeypatch.setattr(control_groups, name, path)
    free = control_groups.free_in_groups()  # the runtime, which has a reading of its own
    assert min(4096, 4096 if free is None else free) == wanted
    monkeypatch.setattr(memory, "SYSTEM_MEMORY", tmp_path / "not there")
    if not files:
        assert memory.available_bytes() is None
    elif wanted < 4096:
        assert memory.available_bytes() == wanted


FAULTS = """
import resource
from nnunet_kd.system.memory import freed_memory_kept, resident_bytes

def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        b"x" * MANY
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

outside = faults()
with freed_memory_kept():
    with freed_memory_kept():
        faults()
        within, resident = faults(), resident_bytes()
    given_back = resident - resident_bytes()
    faults()
    within, resident = max(within, faults()), resident_bytes()
with freed_memory_kept(False):
    print(outside, within, faults(), min(given_back, resident - resident_bytes()))
""".replace("MANY", str(MANY))


@pytest.mark.skipif(not memory._glibc(), reason="freed memory is kept with glibc alone")
def test_freed_memory_is_used_again_and_given_back_at_the_end() -> None:
    finished = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True, text=True)
    outside, within, after, given_back = map(int, finished.stdout.split())
    pages = 10 * MANY // mmap.PAGESIZE
    assert min(outside, after) > pages / 2  # every block is taken from the system, page by page
    assert within < pages / 100
    assert given_back > MANY / 2


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_set", lambda *told: pytest.fail("set"))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    with memory.freed_memory_kept():
        pass
    monkeypatch.setattr(memory.sys, "platform", "win32")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: pytest.fail("loaded"))
    with memory.freed_memory_kept():
        pass


def test_who_sets_glibcs_variables_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_set", lambda *told: pytest.fail("set"))
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    with memory.freed_memory_kept():
        pass


def test_what_an_older_glibc_refuses_is_as_large_as_it_allows() -> None:
    asked: list[tuple[int, int]] = []

    class Older:
        def mallopt(self, option: int, value: int) -> int:
            asked.append((option, value))
            return int(value <= 32 << 20)

    memory._set(Older(), {-3: 1 << 30, -1: -1})
    assert asked == [(-3, 1 << 30), (-3, 32 << 20), (-1, -1)]


def trained_weights(kept: bool) -> torch.Tensor:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 8, 3), torch.nn.InstanceNorm3d(8), torch.nn.Conv3d(8, 2, 3))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    image = torch.randn(2, 1, 24, 24, 24)
    with memory.freed_memory_kept(kept):
        for _ in range(4):
            optimizer.zero_grad()
            network(image).square().mean().backward()
            optimizer.step()
    return torch.nn.utils.parameters_to_vector(network.parameters())


def test_numbers_stay_the_same_bit_for_bit() -> None:
    assert torch.equal(trained_weights(True), trained_weights(False))
