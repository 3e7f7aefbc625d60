# SPDX-License-Identifier: BSD-3-Clause
"""A vfio-user client on bare sockets, made to test servers: it can also misbehave."""
