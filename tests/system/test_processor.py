"""The processor's name, as Linux tells it and where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnunet_kd.system import processor

TOLD = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC
stepping\t: 1
flags\t\t: fpu vme

processor\t: 1
model name\t: another
"""


@pytest.mark.parametrize(
    ("told", "name"),
    [
        (TOLD, "AMD EPYC (family 25, model 1, stepping 1)"),
        ("processor: 0\nmodel name: ARM Neoverse\n", "ARM Neoverse"),
    ],
)
def test_linux_tells_it(told: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(told)
    monkeypatch.setattr(processor, "CPUINFO", path)
    assert processor.processor_name() == name


def test_elsewhere_python_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "nothing")
    monkeypatch.setattr(processor.platform, "processor", lambda: "")
    assert processor.processor_name() == "CPU"
