"""A stand-in for ComfyUI's module of this name: devices, and the flag that "Cancel" sets."""

import threading

import torch

_interrupted = threading.Event()


class InterruptProcessingException(Exception):
    pass


def interrupt_current_processing(value: bool = True) -> None:
    if value:
        _interrupted.set()
    else:
        _interrupted.clear()


def processing_interrupted() -> bool:
    return _interrupted.is_set()


def throw_exception_if_processing_interrupted() -> None:
    if _interrupted.is_set():
        _interrupted.clear()
        raise InterruptProcessingException


def get_torch_device() -> torch.device:
    return torch.device("cpu")


def unet_offload_device() -> torch.device:
    return torch.device("cpu")
