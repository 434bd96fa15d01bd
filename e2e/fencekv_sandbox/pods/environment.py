"""What a container is given: its command and its environment, as a kubelet works them out from the pod.

Pure: decides, starts nothing.

Invariants:
  * What the runner must say (addresses, folders) wins over what the pod says.
  * Whatever a pod asks for that is not provided here raises `NotProvided`; nothing is silently left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from .addresses import Address

Object = dict[str, Any]

HOST_IP: Final = "127.0.0.1"
DATA_PATH: Final = "/data"
PORTS: Final = {"http": ("FENCEKV_HTTP_PORT", 7070), "peer": ("FENCEKV_PEER_PORT", 7071)}
INHERITED: Final = (
    "PATH",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "PYTHONPATH",
    "PYTHONHASHSEED",
    "VIRTUAL_ENV",
    "COVERAGE_PROCESS_START",
)

_REFERENCE: Final = re.compile(r"\$\$|\$\(([-._a-zA-Z][-._a-zA-Z0-9]*)\)")
_MAP_FIELD: Final = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


class NotProvided(Exception):
    """The pod asks for something that this runner does not have; the message says what."""


def single_container(pod: Object) -> Object:
    """The pod's only container."""
    spec = pod["spec"]
    if spec.get("initContainers"):
        raise NotProvided("initContainers are not run here")
    if len(spec["containers"]) != 1:
        raise NotProvided("a pod has exactly one container here")
    container: Object = spec["containers"][0]
    return container


def variables(
    pod: Object, *, address: Address, overrides: Mapping[str, str], inherited: Mapping[str, str]
) -> dict[str, str]:
    """The container's environment."""
    found = {name: inherited[name] for name in INHERITED if name in inherited}
    found["HOSTNAME"] = pod["spec"].get("hostname") or pod["metadata"]["name"]
    found.update(overrides)
    for entry in single_container(pod).get("env") or []:
        name = entry["name"]
        if name in overrides:
            continue
        if entry.get("valueFrom"):
            found[name] = _field(pod, entry["valueFrom"], name, address)
        else:
            found[name] = expand(entry.get("value") or "", found)
    if single_container(pod).get("envFrom"):
        raise NotProvided("envFrom is not provided here")
    return found


def port_overrides(address: Address) -> dict[str, str]:
    """The ports, where pods share one address."""
    if address.http_port is None or address.peer_port is None:
        return {}
    return {"FENCEKV_HTTP_PORT": str(address.http_port), "FENCEKV_PEER_PORT": str(address.peer_port)}


def command_of(pod: Object, *, commands: Mapping[str, Sequence[str]], environment: Mapping[str, str]) -> list[str]:
    """The container's command and arguments; `commands` says what stands for a program of an image."""
    container = single_container(pod)
    command = [expand(part, environment) for part in container.get("command") or []]
    if not command:
        raise NotProvided("a container needs a command here: there is no image to take one from")
    arguments = [expand(part, environment) for part in container.get("args") or []]
    return [*commands.get(command[0], [command[0]]), *command[1:], *arguments]


def expand(text: str, environment: Mapping[str, str]) -> str:
    """Replaces `$(NAME)`; `$$` is a dollar, and an unknown name stays as it is."""

    def replacement(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else environment.get(match[1], match[0])

    return _REFERENCE.sub(replacement, text)


def probe_port(pod: Object, port: int | str, *, address: Address) -> int:
    """The port that a probe means: a number or a port's name; moved where pods share one address."""
    numbers = {p.get("name"): p["containerPort"] for p in single_container(pod).get("ports") or []}
    if isinstance(port, str) and not port.isdigit():
        if port not in numbers:
            raise NotProvided(f"the container has no port named {port!r}")
        port = numbers[port]
    number = int(port)
    given = {entry["name"]: entry.get("value") for entry in single_container(pod).get("env") or []}
    for name, (variable, default) in PORTS.items():
        moved = address.http_port if name == "http" else address.peer_port
        if moved is not None and number == int(given.get(variable) or default):
            return moved
    return number


def claim_volumes(pod: Object) -> dict[str, str]:
    """Claims by the name of the volume that uses them."""
    return {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["spec"].get("volumes") or []
        if volume.get("persistentVolumeClaim")
    }


def data_claim(pod: Object) -> str | None:
    """The claim that holds the data folder; None: the pod keeps nothing."""
    claims = claim_volumes(pod)
    container = single_container(pod)
    given = {entry["name"]: entry.get("value") for entry in container.get("env") or []}
    wanted = given.get("FENCEKV_DATA") or DATA_PATH
    for mount in container.get("volumeMounts") or []:
        path, volume = Path(mount["mountPath"]), mount["name"]
        if volume in claims and (path == Path(wanted) or path in Path(wanted).parents):
            return claims[volume]
    return next(iter(claims.values()), None)


def _field(pod: Object, source: Object, name: str, address: Address) -> str:
    if "fieldRef" not in source:
        raise NotProvided(f"env {name}: of valueFrom only fieldRef is provided here")
    path = source["fieldRef"]["fieldPath"]
    metadata, spec = pod["metadata"], pod["spec"]
    if mapped := _MAP_FIELD.fullmatch(path):
        return str((metadata.get(mapped[1]) or {}).get(mapped[2], ""))
    fields = {
        "metadata.name": metadata["name"],
        "metadata.namespace": metadata["namespace"],
        "metadata.uid": metadata["uid"],
        "spec.nodeName": spec.get("nodeName") or "",
        "spec.serviceAccountName": spec.get("serviceAccountName") or "default",
        "status.podIP": address.ip,
        "status.podIPs": address.ip,
        "status.hostIP": HOST_IP,
        "status.hostIPs": HOST_IP,
    }
    if path not in fields:
        raise NotProvided(f"env {name}: no field {path}")
    return str(fields[path])
