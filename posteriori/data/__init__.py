"""Data sets: reading the files that hold X's, splitting them without leakage, writing generated ones."""

from posteriori.data.formats import FORMATS, read
from posteriori.data.records import Record
from posteriori.data.splits import leaks, normalised, refuse_leaks, split

__all__ = ["FORMATS", "Record", "leaks", "normalised", "read", "refuse_leaks", "split"]
