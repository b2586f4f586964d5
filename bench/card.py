"""The GPU that CUDA calls its first, as NVML knows it by its UUID: nvidia-smi counts in another order and past
CUDA_VISIBLE_DEVICES, and knows no memory of a slice of a card (MIG).

    python bench/card.py     prints the MiB of its memory
"""

import ctypes
import threading
import uuid

PERIOD_S = 0.02


class Memory(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]


def check(error: int, what: str) -> None:
    if error:
        raise RuntimeError(f"{what}: error {error}")


def uuid_of_the_first() -> str:
    """By the driver, without a context."""
    driver = ctypes.CDLL("libcuda.so.1")
    device, found = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    check(driver.cuInit(0), "cuInit")
    check(driver.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
    check(driver.cuDeviceGetUuid_v2(found, device), "cuDeviceGetUuid_v2")
    return str(uuid.UUID(bytes=bytes(found)))


class Card:
    def __init__(self):
        self.nvml = ctypes.CDLL("libnvidia-ml.so.1")
        check(self.nvml.nvmlInit_v2(), "nvmlInit_v2")
        name = uuid_of_the_first()
        self.handle = ctypes.c_void_p()
        for kind in ("GPU", "MIG"):
            if self.nvml.nvmlDeviceGetHandleByUUID(f"{kind}-{name}".encode(), ctypes.byref(self.handle)) == 0:
                return
        raise RuntimeError(f"NVML knows no GPU and no slice of one with the UUID {name}")

    def memory(self) -> Memory:
        memory = Memory()
        check(self.nvml.nvmlDeviceGetMemoryInfo(self.handle, ctypes.byref(memory)), "nvmlDeviceGetMemoryInfo")
        return memory

    def described(self) -> str:
        """Its name, its driver, its link; "?" where NVML does not tell, as of a slice's link."""
        name, driver = (ctypes.create_string_buffer(96) for _ in range(2))
        told = [name.value.decode() if self.nvml.nvmlDeviceGetName(self.handle, name, 96) == 0 else "?",
                driver.value.decode() if self.nvml.nvmlSystemGetDriverVersion(driver, 96) == 0 else "?"]
        link = []
        for ask in (self.nvml.nvmlDeviceGetMaxPcieLinkGeneration, self.nvml.nvmlDeviceGetMaxPcieLinkWidth):
            value = ctypes.c_uint()
            link.append(str(value.value) if ask(self.handle, ctypes.byref(value)) == 0 else "?")
        return f"{told[0]}, driver {told[1]}, PCIe {link[0]} x{link[1]}"


class Followed:
    """Follows what of a card's memory is taken, while its context lasts; then `peak` is the most, less what was taken
    before, in bytes."""

    def __init__(self, card: Card):
        self.card = card

    def __enter__(self) -> "Followed":
        self.before = self.most = self.card.memory().used
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.follow)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self.peak = self.most - self.before

    def follow(self) -> None:
        while True:
            self.most = max(self.most, self.card.memory().used)
            if self.ended.wait(PERIOD_S):
                return


if __name__ == "__main__":
    print(Card().memory().total // 2**20)
