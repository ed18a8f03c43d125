from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tunelab.doctor import gpus
from tunelab.doctor.gpus import TorchView, count_cards, driver_version, find_gpus, find_torch, look_with_torch

CARD = "{index}, GPU-{index}, NVIDIA H100 80GB HBM3, 570.86, 81559, {used}, {busy}, {mig}, {mode}"
Smi = Callable[..., dict[str, str]]


def card(index: int = 0, used: int = 4, busy: str = "0", mig: str = "Disabled", mode: str = "Default") -> str:
    return CARD.format(index=index, used=used, busy=busy, mig=mig, mode=mode)


@pytest.fixture
def smi(tmp_path: Path) -> Smi:
    """Puts an nvidia-smi that answers so on a PATH, and gives the environment with it."""

    def make(cards: str = "", programs: str = "", status: int = 0, wait: float = 0.0) -> dict[str, str]:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        script = folder / "nvidia-smi"
        script.write_text(
            "#!/bin/sh\n"
            + (f"exec sleep {wait}\n" if wait else "")
            + f"case \"$1\" in *compute-apps*) printf '%s' '{programs}';; *) printf '%s' '{cards}';; esac\n"
            f"exit {status}\n"
        )
        script.chmod(0o755)
        return {"PATH": f"{folder}:/usr/bin:/bin"}

    return make


def rooted(root: Path, driver: str = "", cards: int = 0, others: int = 0) -> Path:
    """A machine with a driver that is loaded and cards on its bus."""
    if driver:
        (root / "proc/driver/nvidia").mkdir(parents=True)
        version = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Wed Jan 8\nGCC version: 12\n"
        (root / "proc/driver/nvidia/version").write_text(version)
    for number in range(cards + others):
        folder = root / f"sys/bus/pci/devices/0000:0{number}:00.0"
        folder.mkdir(parents=True)
        (folder / "vendor").write_text("0x10de\n" if number < cards else "0x8086\n")
        (folder / "class").write_text("0x030200\n")
    return root


def test_no_gpu_is_fine(tmp_path: Path) -> None:
    (found,) = find_gpus({"PATH": str(tmp_path)}, rooted(tmp_path / "root", others=1))
    assert (found.verdict, found.name) == ("ok", "GPU")


def test_a_card_without_a_driver(tmp_path: Path) -> None:
    root = rooted(tmp_path / "root", cards=2, others=1)
    assert count_cards(root) == 2
    (found,) = find_gpus({"PATH": str(tmp_path)}, root)
    assert (found.verdict, "2 NVIDIA cards without a driver" in found.measured) == ("warning", True)


def test_a_driver_whose_nvidia_smi_is_missing_or_fails(tmp_path: Path, smi: Smi) -> None:
    root = rooted(tmp_path / "root", driver="570.86.15", cards=1)
    assert driver_version(root) == "570.86.15"
    (found,) = find_gpus({"PATH": str(tmp_path)}, root)
    assert found.measured == "the driver 570.86.15 is loaded, but nvidia-smi is not there"
    said = "Failed to initialize NVML: Driver/library version mismatch"
    (found,) = find_gpus(smi(said, status=18), root)
    assert (found.verdict, found.measured) == (
        "warning",
        f"the driver 570.86.15 is loaded, but nvidia-smi fails with status 18: {said}",
    )
    (found,) = find_gpus(smi("no such words"), root)
    assert "nvidia-smi answers 'no such words'" in found.measured


def test_an_nvidia_smi_that_hangs(tmp_path: Path, smi: Smi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "_PATIENCE", 0.2)
    (found,) = find_gpus(smi(wait=60), rooted(tmp_path / "root", driver="570.86"))
    assert (found.verdict, "did not answer within" in found.measured) == ("warning", True)


@pytest.mark.parametrize(
    ("cards", "programs", "verdict", "said"),
    [
        (card(), "", "ok", "79.6 GiB of 79.6 GiB free"),
        (card(used=40000), "GPU-0, 4711\nGPU-1, 9\n", "warning", "39.1 GiB taken by process 4711"),
        (card(used=40000), "", "warning", "39.1 GiB taken"),
        (card(busy="97"), "", "warning", "97% busy"),
        (card(busy="[N/A]"), "", "ok", "H100"),
        (card(mig="Enabled"), "", "warning", "divided (MIG)"),
        (card(mig="[N/A]"), "", "ok", "H100"),
        (card(mode="Prohibited"), "", "error", "may not compute"),
        (card(mode="Exclusive_Process"), "", "warning", "only one process at a time"),
        ("", "", "warning", "lists no GPU"),
    ],
)
def test_what_nvidia_smi_says(tmp_path: Path, smi: Smi, cards: str, programs: str, verdict: str, said: str) -> None:
    (found,) = find_gpus(smi(cards, programs), rooted(tmp_path / "root", driver="570.86", cards=1))
    assert found.verdict == verdict
    assert said in found.measured
    assert (found.mend == "") == (verdict == "ok")


def test_each_gpu_is_told(tmp_path: Path, smi: Smi) -> None:
    found = find_gpus(smi(f"{card(0)}\n{card(1, used=70000)}\n"), rooted(tmp_path / "root", driver="570.86"))
    assert [(one.name, one.verdict) for one in found] == [("GPU 0", "ok"), ("GPU 1", "warning")]


@pytest.mark.parametrize(
    ("view", "driver", "environ", "verdict", "said"),
    [
        (TorchView("2.13.0+cpu", None, 0), "", {}, "ok", "built for processors; no driver is loaded"),
        (TorchView("2.13.0", "12.6", 0), "", {}, "ok", "no driver is loaded"),
        (TorchView("2.13.0", "12.6", 2), "570.86", {}, "ok", "2 usable"),
        (TorchView("2.13.0+cpu", None, 0), "570.86", {}, "warning", "no GPU will be used"),
        (TorchView("2.13.0", "12.6", 0), "570.86", {"CUDA_VISIBLE_DEVICES": ""}, "warning", "hides all GPUs"),
        (
            TorchView("2.13.0", "13.0", 0, "driver too old"),
            "470.1",
            {},
            "warning",
            "finds no GPU beside the driver 470.1",
        ),
        (TorchView("2.13.0", "12.6", 1, "GPU 0: no kernel image"), "570.86", {}, "error", "no kernel image"),
    ],
)
def test_torch_against_the_driver(
    tmp_path: Path, view: TorchView, driver: str, environ: dict[str, str], verdict: str, said: str
) -> None:
    (found,) = find_torch(view, environ, rooted(tmp_path, driver))
    assert found.verdict == verdict
    assert said in found.measured
    assert (found.mend == "") == (verdict == "ok")


def test_a_cpu_torch_beside_a_driver_names_the_pip_command(tmp_path: Path) -> None:
    (found,) = find_torch(TorchView("2.13.0+cpu", None, 0), {}, rooted(tmp_path, "570.86"))
    assert "pip install --force-reinstall 'torch==2.13.0'" in found.mend


def test_the_torch_that_is_here() -> None:
    import torch

    view = look_with_torch()
    assert (view.version, view.cuda) == (torch.__version__, torch.version.cuda)
    assert view.count == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
