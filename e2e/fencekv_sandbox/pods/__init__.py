"""The pod runner: StatefulSet controller, scheduler and kubelet of one machine, with faults to order."""

from .backoff import Backoff
from .faults import NotRunning, PodHandle
from .runner import FolderInUse, PodRunner

__all__ = ["Backoff", "FolderInUse", "NotRunning", "PodHandle", "PodRunner"]
