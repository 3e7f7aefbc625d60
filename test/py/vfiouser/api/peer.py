# SPDX-License-Identifier: BSD-3-Clause
"""The mock client of a device that lives in this process."""

import contextlib
import os
import select
import threading

from ..channel import TIMEOUT, Disconnected
from ..client import CAPABILITIES, Client, version_payload
from ..wire import Cmd

TWIN = {**CAPABILITIES, "twin_socket": {"supported": True}}


class Peer(Client):
    """
    Where a client waits, this one lets the device run, call by call, in the same thread: what
    vfu_run_ctx() fails with comes out of the method that waited. Without stepping, the device runs
    in another thread.
    """

    def __init__(self, device):
        super().__init__(device.path)
        self.device = device
        self.stepping = True

    def ready(self):
        channels = [self.channel] + ([self.twin] if self.twin else [])
        return bool(select.select(channels, [], [], 0)[0])

    def pump(self):
        # One call may be needed to receive and one to serve; more that do nothing mean silence.
        idle = 0
        while self.stepping and not self.ready():
            idle = idle + 1 if self.device.step() == 0 else 0
            assert idle < 4, "the device does not answer"
        return super().pump()

    def send_version(self, capabilities=None, **version):
        return self.send(Cmd.VERSION, version_payload(capabilities or CAPABILITIES, **version))

    def silent(self):
        """Has nothing been received, after everything that the device wants to say now?"""
        self.device.run()
        return not self.ready()

    @contextlib.contextmanager
    def answering(self):
        """
        A thread serves the device's commands, while the test is inside a function that waits for
        the answers. With a twin socket the test may talk on the other one meanwhile.
        """
        twin, self.twin = self.twin, None
        server = CommandServer(self, twin or self.channel)
        try:
            yield self
        finally:
            self.twin = twin
            server.stop()


class CommandServer:
    def __init__(self, peer, channel):
        self.peer = peer
        self.channel = channel
        self.stopping = os.eventfd(0)
        self.error = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        try:
            while True:
                ready, _, _ = select.select([self.channel, self.stopping], [], [])
                if self.stopping in ready:
                    return
                message = self.channel.recv()
                message.channel = self.channel
                if message.is_reply:
                    self.peer.replies[message.id].append(message)
                else:
                    self.peer.on_command(message)
        except (Disconnected, ConnectionError):
            pass
        except BaseException as error:  # pylint: disable=broad-except
            self.error = error

    def stop(self):
        os.eventfd_write(self.stopping, 1)
        self.thread.join(TIMEOUT)
        alive = self.thread.is_alive()
        os.close(self.stopping)
        assert not alive, "the answering thread hangs"
        if self.error:
            raise self.error


class Running:
    """vfu_attach_ctx() and vfu_run_ctx() in a thread, for a device that blocks."""

    def __init__(self, device, attach=False):
        self.device = device
        self.attach = attach
        self.error = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        try:
            if self.attach:
                self.device.attach()
            self.device.run()
        except OSError as error:
            self.error = error.errno

    def result(self):
        """The errno with which it has ended."""
        self.thread.join(TIMEOUT)
        assert not self.thread.is_alive(), "vfu_run_ctx() does not return"
        return self.error
