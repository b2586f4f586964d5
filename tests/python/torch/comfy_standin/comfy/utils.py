"""A stand-in for ComfyUI's module of this name: the bar, which here keeps what it was told."""

shown: list[tuple[int, int]] = []


class ProgressBar:
    def __init__(self, total: int):
        self.total = total

    def update_absolute(self, value: int, total: int | None = None, preview: object = None) -> None:
        shown.append((value, total or self.total))
