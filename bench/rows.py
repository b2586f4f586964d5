"""The rows of a table, and what gives their values."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Row:
    what: str
    resident: str  # Which weights are in memory as it begins.
    unit: str
    against: str = ""  # What `theirs` is; "" for nothing.
    target: tuple[float, float] | None = None  # Of ours / theirs.
    limits: list[str] = field(default_factory=list)  # What limited each of our turns; none for bytes.
    more_is_better: bool = False


class Measure:
    """Rows that one turn gives the values of. Less is better, where a row does not say otherwise."""

    rounds = 3
    sizes = (0,)  # Pixels a side; 0: not of one size.
    program = "ditserve"  # What a build must have for it.

    def __init__(self, checkpoint: Path, _size: int = 0):
        self.checkpoint = checkpoint
        self.rows: list[Row] = []

    def ours(self, binaries: Path) -> list[float]:
        raise NotImplementedError

    def theirs(self, _: Path) -> list[float]:
        """Of a row that is held against nothing it does not matter."""
        return [0.0] * len(self.rows)

    def both(self, binaries: Path) -> tuple[list[float], list[float]]:
        """A turn of each."""
        return self.ours(binaries), self.theirs(binaries)
