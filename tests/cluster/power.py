#!/usr/bin/python3 -IS
"""A question to the harness about the power of its nodes, from any namespace.

    power.py SOCKET LINE           prints the answer; the lines are those of harness.PowerServer
"""

import socket
import sys

ANSWER_WAIT_S = 30


def ask(path, line):
    """Return the harness's answer to one line."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(ANSWER_WAIT_S)
    client.connect(path)
    with client, client.makefile("rw") as stream:
        stream.write(line + "\n")
        stream.flush()
        return stream.readline().strip()


if __name__ == "__main__":
    print(ask(*sys.argv[1:]))
