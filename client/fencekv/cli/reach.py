"""How the commands of `kubectl fencekv` reach a cluster: options, running, errors, and what pods say.

Invariants:
  * A command changes nothing in a cluster unless its help says so.
  * What a shard is asked for is an aid: whoever does not answer in time is left out.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from fencekv.cli.run import report
from fencekv.errors import Denied, FenceKVError, Invalid, NotFound, Unavailable

if TYPE_CHECKING:
    from fencekv.kube import HttpKube, Resource

PROGRAM: Final = "kubectl-fencekv"
HTTP_PORT: Final = 7070  # of shard pods
OPERATOR_NAMESPACE: Final = "fencekv-system"
REPORT_BYTES_MAX: Final = 32 << 20
SHARD_SECONDS: Final = 2.0

Object = dict[str, Any]


class Reach:
    """A Kubernetes namespace of a cluster."""

    def __init__(self, kube: HttpKube, namespace: str) -> None:
        self.kube, self.namespace = kube, namespace

    async def all_of(self, resource: Resource, *, labels: str = "") -> list[Object]:
        """All objects of a kind in this namespace."""
        return (await self.kube.list(resource, self.namespace, labels=labels)).items

    async def all_known(self, resource: Resource, *, labels: str = "") -> list[Object]:
        """The same; none where the cluster does not know the kind or does not let us read it."""
        from fencekv.kube import KubeError  # noqa: PLC0415

        try:
            return await self.all_of(resource, labels=labels)
        except KubeError as error:
            if error.status in {403, 404}:
                return []
            raise

    async def get(self, resource: Resource, name: str) -> Object | None:
        """An object; None: there is none."""
        from fencekv.kube import KubeNotFound  # noqa: PLC0415

        try:
            return await self.kube.get(resource, self.namespace, name)
        except KubeNotFound:
            return None

    async def shard_page(
        self, pod: str, http: str, path: str, *, bytes_max: int = REPORT_BYTES_MAX
    ) -> bytes | None:
        """A page of a shard: through the API server, or else directly; None: neither way gives it.

        `http`: host:port as its session Lease has it, or empty.
        """
        from fencekv.kube import PODS, KubeError, Unclear  # noqa: PLC0415

        proxied = PODS.path(self.namespace, f"{pod}:{HTTP_PORT}", f"proxy{path}")
        try:
            return await self.kube.read(proxied, bytes_max=bytes_max, timeout=SHARD_SECONDS)
        except (KubeError, Unclear):
            return await _direct(http, path, bytes_max=bytes_max) if http else None

    async def shard_reports(self, shards: Mapping[str, str]) -> dict[str, Object]:
        """What shards report, by pod; `shards`: pod -> http. Who does not answer is left out."""
        pages = await asyncio.gather(
            *(self.shard_page(pod, http, "/peer/v1/report") for pod, http in shards.items())
        )
        found: dict[str, Object] = {}
        for pod, page in zip(shards, pages, strict=True):
            document = _object(page)
            if document is not None:
                found[pod] = document
        return found


async def _direct(http: str, path: str, *, bytes_max: int) -> bytes | None:
    import aiohttp  # noqa: PLC0415 (help must not wait for it)

    timeout = aiohttp.ClientTimeout(total=SHARD_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"http://{http}{path}") as answer,
        ):
            raw = await answer.content.read(bytes_max) if answer.status == 200 else None
            while (
                raw is not None
                and len(raw) < bytes_max
                and (part := await answer.content.read(bytes_max - len(raw)))
            ):
                raw += part
            return raw
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return None


def _object(page: bytes | None) -> Object | None:
    if page is None:
        return None
    try:
        document = json.loads(page)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


Act = Callable[[Reach], Awaitable[int]]


def run(act: Act, *, kube_namespace: str, kubeconfig: str, context: str, output: str) -> int:
    """Runs `act` with a way to the cluster; gives the exit status."""
    try:
        return asyncio.run(_session(act, kube_namespace, kubeconfig, context))
    except FenceKVError as refusal:
        return report(refusal, output=output, program=PROGRAM)
    except KeyboardInterrupt:
        return 130


async def _session(act: Act, namespace: str, kubeconfig: str, context: str) -> int:
    from fencekv import access  # noqa: PLC0415 (after parsing: help must not wait for it)
    from fencekv.kube import HttpKube, KubeError, KubeNotFound, Unclear  # noqa: PLC0415

    try:
        way = await asyncio.to_thread(access.find, os.environ, kubeconfig=kubeconfig, context=context)
    except access.NoAccess as error:
        raise Invalid(str(error), field="kubeconfig") from error
    async with HttpKube(way, user_agent=PROGRAM) as kube:
        try:
            return await act(Reach(kube, namespace or way.namespace))
        except KubeNotFound as error:
            raise NotFound(error.message or str(error)) from error
        except KubeError as error:
            raise _refused(error) from error
        except Unclear as error:
            raise Unavailable(f"the Kubernetes API: {error}") from error


def _refused(error: Any) -> FenceKVError:
    if error.status in {401, 403}:
        return Denied(f"the Kubernetes API: {error.message}")
    if error.status in {400, 409, 422}:
        return Invalid(error.message)
    return Unavailable(f"the Kubernetes API: {error}")


def cluster_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of most commands that look at a cluster; they get `reach`, called with what to do."""
    forms = click.Choice(["table", "json", "yaml"])

    @functools.wraps(function)
    def command(reach_as: Callable[[Act, str], None], output: str, **arguments: Any) -> None:
        function(reach=lambda act: reach_as(act, output), output=output, **arguments)

    option = click.option(
        "-o", "--output", type=forms, default="table", show_default=True, help="Form of the answer."
    )
    return way_options(option(command))


def way_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say which cluster; the command gets `reach_as`, called with what to do and a form."""

    @functools.wraps(function)
    def command(kube_namespace: str, kubeconfig: str, context_name: str, **arguments: Any) -> None:
        def reach_as(act: Act, form: str) -> None:
            sys.exit(
                run(act, kube_namespace=kube_namespace, kubeconfig=kubeconfig, context=context_name, output=form)
            )

        function(reach_as=reach_as, **arguments)

    wrapped: Callable[..., Any] = command
    wrapped = click.option("--context", "context_name", default="", help="Context of the kubeconfig.")(wrapped)
    wrapped = click.option("--kubeconfig", default="", type=click.Path(), help="How to reach the cluster.")(
        wrapped
    )
    text = "Kubernetes namespace [default: the kubeconfig's]."
    return click.option("-n", "--namespace", "kube_namespace", default="", help=text)(wrapped)
