#!/usr/bin/python3 -IS
"""Fence agent of the harness's own tests: asks the harness to cut and to give power.

It believes every answer and proves nothing; a stand-in until real agents take its place.
"""

import socket
import sys

ANSWER_WAIT_S = 30

METADATA = """<?xml version="1.0"?>
<resource-agent name="fence_stub" shortdesc="Power switch of the cluster harness">
  <longdesc>Asks the harness through its power socket.</longdesc>
  <parameters>
    <parameter name="action" unique="0" required="1">
      <content type="string" default="reboot"/>
      <shortdesc lang="en">Fencing action</shortdesc>
    </parameter>
    <parameter name="plug" unique="0" required="1">
      <content type="string"/>
      <shortdesc lang="en">Node to switch</shortdesc>
    </parameter>
    <parameter name="power_socket" unique="0" required="1">
      <content type="string"/>
      <shortdesc lang="en">Path of the harness's power socket</shortdesc>
    </parameter>
  </parameters>
  <actions>
    <action name="on" automatic="0"/>
    <action name="off"/>
    <action name="reboot"/>
    <action name="status"/>
    <action name="monitor"/>
    <action name="metadata"/>
  </actions>
</resource-agent>
"""


def main():
    options = dict(line.rstrip("\n").split("=", 1) for line in sys.stdin if "=" in line)
    action = options.get("action")
    if action == "metadata":
        sys.stdout.write(METADATA)
        return 0
    path, node = options["power_socket"], options.get("plug")
    if action == "monitor":
        return 0 if ask(path, "ping") == "ok" else 1
    if action == "status":
        return {"on": 0, "off": 2}.get(ask(path, "state " + node), 1)
    steps = {"off": ["off"], "on": ["on"], "reboot": ["off", "on"]}.get(action)
    if not steps:
        return 1
    return 0 if all(ask(path, "%s %s" % (step, node)) == "ok" for step in steps) else 1


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
    sys.exit(main())
