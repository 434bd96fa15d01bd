"""An API server of our own: the part of Kubernetes that FenceKV uses, in one process, without anything else.

Layers, lowest first: store and log; schema, cel, patches and managed fields; admission and writes; `ApiServer`,
which does no I/O and takes time and chance as arguments; the HTTP front.
"""

from .api import ApiServer
from .http import Server, serve
from .message import Request, Response

__all__ = ["ApiServer", "Request", "Response", "Server", "serve"]
