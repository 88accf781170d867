"""Devices that a plan is made for, by name: how much they hold, and how fast they compute and copy.

Sizes and rates are those of the makers' data sheets (NVIDIA: H100 SXM, H200 SXM and A100 80GB SXM data sheets), dense,
without sparsity; memory is what CUDA reports of such a device. What training reaches of a rate is assumed, and told by
the constants below; of attention alone it was measured, on an H100 (`lg.attention.rates`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MATMUL_REACHED = 0.65
"""Of the data sheet's rate, what large matrix products reach; assumed."""
MEMORY_REACHED = 0.75
"""Of the data sheet's bandwidth, what elementwise operations and the optimizer reach; assumed."""
LINK_REACHED = 0.7
"""Of a link's rate, what large messages reach; assumed."""
FILLED = 0.92
"""Of a device's memory, what tensors may fill: the rest is the driver's, NCCL's, and lost between tensors; assumed."""


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        memory: bytes.
        bfloat16, float32: operations a second in matrix products; of float32 without TF32, as torch does by default.
        bandwidth: bytes a second, of its memory.
        link: bytes a second that it receives from other devices of its host, while it sends as many.
        host_link: the same between it and its host.
        measured_as: the full name of the device whose measured rates of attention are taken.
    """

    memory: int
    bfloat16: float
    float32: float
    bandwidth: float
    link: float
    host_link: float
    measured_as: str = "NVIDIA H100 80GB HBM3"

    def matmul(self, element: int) -> float:
        """Operations a second that are reached with elements of so many bytes."""
        return MATMUL_REACHED * (self.bfloat16 if element == 2 else self.float32)


DEVICES: Mapping[str, Device] = {
    "H100": Device(int(79.1 * 2**30), 989e12, 67e12, 3.35e12, 450e9, 64e9),
    "H200": Device(int(139.8 * 2**30), 989e12, 67e12, 4.8e12, 450e9, 64e9),
    "A100": Device(int(79.2 * 2**30), 312e12, 19.5e12, 2.04e12, 300e9, 32e9),
}


def device(name: str) -> Device:
    """A device by lg's name for it, in letters of either case.

    Raises:
        ValueError: if it is not known.
    """
    if name.upper() not in DEVICES:
        raise ValueError(f"device: {name!r} is not known; allowed: {', '.join(DEVICES)}")
    return DEVICES[name.upper()]


def of_kind(full_name: str) -> Device | None:
    """The device that torch calls so, as in "NVIDIA H100 80GB HBM3"; None if its rates are not known.

    Its memory may be another: there are A100s of 40 GB.
    """
    return next((known for name, known in DEVICES.items() if name in full_name), None)
