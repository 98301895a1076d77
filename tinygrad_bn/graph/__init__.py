"""Studying the graph: recordings of a run, their tables and pictures, and two pages to hold it all in one's hands."""

from .expand import Expansion, expand
from .explorer import explore
from .playground import playground
from .record import record
from .tape import Call, Leaf, Step, Tape, Visit
from .trace import trace

__all__ = ["Call", "Expansion", "Leaf", "Step", "Tape", "Visit", "expand", "explore", "playground", "record", "trace"]
