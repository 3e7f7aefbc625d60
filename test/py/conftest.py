# SPDX-License-Identifier: BSD-3-Clause
import os
import pathlib

import pytest

from vfiouser import software_iommu as iommu
from vfiouser.client import CAPABILITIES
from vfiouser.edu import Edu
from vfiouser.nvme import Namespace, Nvme
from vfiouser.probe import Probe
from vfiouser.server import Server

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("VFU_BUILD", ROOT / "build"))

pytest_plugins = ["vfiouser.api.fixtures"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """With pytest-xdist one process runs a whole file, and all tests that load the library."""
    for item in items:
        name = item.path.name
        item.add_marker(pytest.mark.xdist_group("api" if name.startswith("test_api_") else name))


def sample(name):
    return built("samples", name)


def built(directory, name):
    path = BUILD / directory / name
    if not os.access(path, os.X_OK):
        pytest.fail(f"{path} is missing: build it, or set VFU_BUILD to the build directory",
                    pytrace=False)
    return path


@pytest.fixture(scope="session")
def library_path():
    return built("lib", "libvfio-user.so.0")


@pytest.fixture(scope="session")
def connected_fds():
    """How many descriptors one connected client costs the server."""
    server = Server(sample("edu"))
    client = server.client()
    client.device_info()
    count = len(server.fds()) - len(server.idle_fds)
    server.stop()
    assert 1 <= count <= 8, f"{count} descriptors for a client"
    return count


def end(server, connected_fds):
    """After the test it must still serve, have no descriptor more than before, and end well."""
    try:
        server.check(connected_fds)
    except BaseException:
        print(server.stderr())
        server.kill()
        raise
    server.stop()


@pytest.fixture
def server(connected_fds, request):
    """
    An edu server of the test's own, which end() looks at afterwards.
    """
    marker = request.node.get_closest_marker("server_args")
    server = Server(sample("edu"), *(marker.args if marker else ()))
    yield server
    if server.stopped:
        server.close_clients()
        return
    end(server, connected_fds)


@pytest.fixture
def client(server):
    return server.client()


@pytest.fixture
def edu(client):
    """The device of the client, allowed to do DMA."""
    device = Edu(client)
    device.enable_bus_master()
    return device


@pytest.fixture
def probe_server(connected_fds, request):
    """An iommu_probe with the arguments of @pytest.mark.probe_args, by default with everything."""
    marker = request.node.get_closest_marker("probe_args")
    args = marker.args if marker else ("--pasid", "20", "--ats", "--pri")
    server = Server(built("test/device", "iommu_probe"), *args)
    yield server
    end(server, connected_fds)


@pytest.fixture
def probe(probe_server):
    """The probe, attached by a client that knows the extension; nothing is switched on."""
    client = probe_server.client({**CAPABILITIES, "iommu": iommu.CAPS})
    return Probe(client)


@pytest.fixture
def iommu_on(probe):
    """The probe with guest memory registered, and PASID, ATS and PRI on."""
    probe.enable()
    return probe


@pytest.fixture
def start_nvme(connected_fds):
    """Starts nvme servers, which must end as the others do, unless the test has killed them."""
    servers = []

    def start(*args):
        server = Server(sample("nvme"), *args, socket_option=None)
        servers.append(server)
        return server

    yield start
    for server in servers:
        if server.stopped:
            continue
        end(server, connected_fds)


@pytest.fixture
def nvme_server(start_nvme, request):
    """An nvme server with the arguments of @pytest.mark.nvme_args, by default with 64 MiB."""
    marker = request.node.get_closest_marker("nvme_args")
    return start_nvme(*(marker.args if marker else ("--namespace", "memory=64M")))


@pytest.fixture
def nvme(nvme_server):
    """The controller, not yet enabled."""
    controller = Nvme(nvme_server.client())
    yield controller
    controller.close_events()


@pytest.fixture
def sq(nvme):
    """The first I/O queue of a running controller, polled."""
    return nvme.start_io()


@pytest.fixture
def disk(nvme, sq):
    """Namespace 1 through that queue."""
    return Namespace(nvme, sq)
