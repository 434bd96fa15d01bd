"""The real control plane as a fixture: how it is found, stopped, frozen, and put back to an earlier state."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from conformance.samples import config_map, maps

from fencekv_sandbox.controlplane import AssetsMissing, ControlPlane, control_plane, find_assets

DEFAULT = "default"
STAFF = {"clerk": ("staff",)}


def test_without_the_variable_the_message_says_how_to_get_the_binaries() -> None:
    with pytest.raises(AssetsMissing, match=r"KUBEBUILDER_ASSETS is not set.*setup-envtest"):
        find_assets({})


def test_an_incomplete_folder_is_named_with_what_it_lacks(tmp_path: Path) -> None:
    binary = tmp_path / "etcd"
    binary.touch(mode=0o755)
    with pytest.raises(AssetsMissing, match="lacks kube-apiserver"):
        find_assets({"KUBEBUILDER_ASSETS": str(tmp_path)})
    (tmp_path / "kube-apiserver").touch(mode=0o755)
    assert find_assets({"KUBEBUILDER_ASSETS": str(tmp_path)}).kubectl is None


real = [
    pytest.mark.realapi,
    pytest.mark.slow,
    pytest.mark.skipif("not config.getoption('--realapi')", reason="starts a real control plane: --realapi"),
]


@pytest.fixture
async def plane() -> AsyncIterator[ControlPlane]:
    async with control_plane(environment=os.environ, users=STAFF) as plane:
        yield plane


async def status(plane: ControlPlane, method: str, path: str, body: object = None, user: str = "admin") -> int:
    headers = {"Authorization": f"Bearer {plane.tokens[user]}"}
    timeout = aiohttp.ClientTimeout(total=5)
    async with (
        aiohttp.ClientSession(headers=headers, timeout=timeout) as session,
        session.request(method, plane.url + path, json=body, ssl=plane.ssl_context()) as reply,
    ):
        return reply.status


class TestReal:
    pytestmark = real

    async def test_etcd_is_put_back_to_an_earlier_copy(self, plane: ControlPlane) -> None:
        assert await status(plane, "POST", maps(DEFAULT), config_map("kept")) == 201
        copy = await plane.snapshot()
        assert await status(plane, "POST", maps(DEFAULT), config_map("lost")) == 201
        await plane.put_back(copy)
        assert await status(plane, "GET", maps(DEFAULT, "kept")) == 200
        assert await status(plane, "GET", maps(DEFAULT, "lost")) == 404

    async def test_a_killed_server_comes_back_where_it_was(self, plane: ControlPlane) -> None:
        assert await status(plane, "POST", maps(DEFAULT), config_map("kept")) == 201
        await plane.apiserver.stop(signal.SIGKILL)
        with pytest.raises(aiohttp.ClientError):
            await status(plane, "GET", maps(DEFAULT, "kept"))
        await plane.start_apiserver()
        assert await status(plane, "GET", maps(DEFAULT, "kept")) == 200

    async def test_a_frozen_server_answers_once_it_is_thawed(self, plane: ControlPlane) -> None:
        plane.apiserver.signal(signal.SIGSTOP)
        asking = asyncio.create_task(status(plane, "GET", maps(DEFAULT)))
        await asyncio.wait([asking], timeout=0.5)
        assert not asking.done()
        plane.apiserver.signal(signal.SIGCONT)
        assert await asking == 200

    async def test_further_users_have_the_rights_that_they_are_given(self, plane: ControlPlane) -> None:
        assert await status(plane, "GET", maps(DEFAULT), user="clerk") == 403
        role = {
            "metadata": {"name": "reader"},
            "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}],
        }
        rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default"
        assert await status(plane, "POST", f"{rbac}/roles", role) == 201
        binding = {
            "metadata": {"name": "reader"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
            "subjects": [{"kind": "Group", "name": "staff", "apiGroup": "rbac.authorization.k8s.io"}],
        }
        assert await status(plane, "POST", f"{rbac}/rolebindings", binding) == 201
        async with asyncio.timeout(10):
            while await status(plane, "GET", maps(DEFAULT), user="clerk") != 200:
                await asyncio.sleep(0.1)
