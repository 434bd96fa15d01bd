"""How the shards' volumes grow. Decided purely.

A StatefulSet's claim template cannot change, so the claims themselves are grown, one by one, and the template
stays as it was made: a claim that it makes later is grown at once. To replace the StatefulSet under its running
pods would also work; it would leave them without a controller for a moment, and gain nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from fencekv.kube import CLAIMS
from fencekv_operator.actions import Update
from fencekv_operator.compare import quantity

Object = dict[str, Any]

VOLUME: Final = "data"


def claim_name(pod: str) -> str:
    """Name of a shard pod's claim, as a StatefulSet makes it."""
    return f"{VOLUME}-{pod}"


def growth(claims: Mapping[str, Object], *, pods: Sequence[str], size: str | int) -> list[Update]:
    """The claims of these pods that ask for less than `size`."""
    return [
        Update(
            resource=CLAIMS,
            namespace=claim["metadata"]["namespace"],
            name=claim["metadata"]["name"],
            patch={
                "metadata": {"resourceVersion": claim["metadata"]["resourceVersion"]},
                "spec": {"resources": {"requests": {"storage": size}}},
            },
        )
        for claim in _of(claims, pods)
        if _is_less((claim["spec"].get("resources") or {}).get("requests") or {}, size)
    ]


def growing(claims: Mapping[str, Object], *, pods: Sequence[str], size: str | int) -> str:
    """Which volumes are smaller than `size` yet, for people; empty: none."""
    small = [
        claim["metadata"]["name"]
        for claim in _of(claims, pods)
        if _is_less((claim.get("status") or {}).get("capacity") or {}, size)
    ]
    return f"volumes are growing to {size}: {', '.join(small[:5])}" if small else ""


def _of(claims: Mapping[str, Object], pods: Iterable[str]) -> list[Object]:
    found = (claims.get(claim_name(pod)) for pod in pods)
    return [claim for claim in found if claim is not None and "deletionTimestamp" not in claim["metadata"]]


def _is_less(amounts: Mapping[str, Any], size: str | int) -> bool:
    """Whether an amount of storage is known and below `size`."""
    amount, wanted = quantity(amounts.get("storage")), quantity(size)
    return amount is not None and wanted is not None and amount < wanted
