# SPDX-License-Identifier: BSD-3-Clause
"""docs/event-loops.md: its code compiles, and serves clients."""

import os
import re
import subprocess

import pytest

from conftest import BUILD, ROOT
from vfiouser.api.fixtures import missing_runtime
from vfiouser.server import Server

MAIN = """
int main(int argc, char **argv)
{
    vfu_ctx_t *ctx = vfu_create_ctx(VFU_TRANS_SOCK, argv[1], LIBVFIO_USER_FLAG_ATTACH_NB, NULL,
                                    VFU_DEV_TYPE_PCI);
    struct epoll_event event;
    struct sigaction action = { .sa_handler = end };
    int fd = epoll_create1(EPOLL_CLOEXEC), err = 0;

    sigaction(SIGTERM, &action, NULL);
    if (ctx == NULL || vfu_realize_ctx(ctx) != 0 || (argc == 2 && add_to_epoll(fd, ctx) != 0)) {
        return 1;
    }
    printf("example: listening on %s\\n", argv[1]);
    fflush(stdout);
    while (err == 0 && !ended) {
        if (argc > 2) {
            err = poll_once(ctx);
        } else if (epoll_wait(fd, &event, 1, -1) == 1) {
            err = serve(event.data.ptr);
        }
    }
    close(fd);
    vfu_destroy_ctx(ctx);
    return ended ? 0 : 1;
}
"""
HEADERS = ("libvfio-user-events.h", "errno.h", "poll.h", "signal.h", "stdio.h", "sys/epoll.h")


@pytest.fixture(scope="module")
def program(library_path, tmp_path_factory):
    if missing_runtime(library_path):
        pytest.skip("the library wants a sanitizer's runtime")
    directory = tmp_path_factory.mktemp("example")
    text = (ROOT / "docs/event-loops.md").read_text(encoding="utf-8")
    code = "".join(f"#include <{header}>\n" for header in HEADERS)
    code += "static volatile sig_atomic_t ended;\nstatic void end(int s) { ended = s; }\n"
    code += "".join(re.findall(r"```c\n(.*?)```", text, re.DOTALL)) + MAIN
    source, binary = directory / "example.c", directory / "example"
    source.write_text(code, encoding="utf-8")
    command = [os.environ.get("CC", "cc"), "-Wall", "-Wextra", "-Werror", "-std=gnu11",
               f"-I{ROOT}/include", str(source), "-o", str(binary),
               f"-L{BUILD}/lib", "-lvfio-user", f"-Wl,-rpath,{BUILD}/lib"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return binary


@pytest.mark.parametrize("args", [[], ["poll"]], ids=["epoll", "poll"])
def test_serves(program, args):
    server = Server(program, *args, socket_option=None)
    for _ in range(3):
        with server.connect() as client:
            client.negotiate()
            assert client.device_info().num_regions == 9
    server.stop()
