# SPDX-License-Identifier: BSD-3-Clause
"""
The library as authors of devices see it: loaded into this process, with devices whose callbacks
are Python functions and the mock client at the other end of the socket.
"""
