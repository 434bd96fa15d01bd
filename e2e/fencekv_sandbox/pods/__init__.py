"""The pod runner: StatefulSet controller, scheduler and kubelet of one machine, with faults to order."""

from .backoff import Backoff
from .faults import NotRunning, PodHandle
from .folders import FolderInUse
from .runner import PodRunner

__all__ = ["Backoff", "FolderInUse", "NotRunning", "PodHandle", "PodRunner"]
