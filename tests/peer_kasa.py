"""What python-kasa does with a KLAP device, and what it finds in what another client has sent it.

It is run by a Python that has python-kasa, and not by the tests' own: test_peers.py gives it one
JSON object on stdin and takes one from stdout.
"""
import asyncio
import json
import sys

from kasa import Credentials, Device, DeviceConfig, Discover, Module
from kasa.deviceconfig import (
    DeviceConnectionParameters, DeviceEncryptionType, DeviceFamily)
from kasa.transports.klaptransport import (
    KlapEncryptionSession, KlapTransport, KlapTransportV2)

CLOCK_S = 30


def login_of(job):
    return Credentials(job["username"], job["password"])


async def find(job):
    """Return the device, found by a datagram or as the job describes it."""
    if not job["port"]:
        device = await Discover.discover_single(
            job["host"], credentials=login_of(job), discovery_timeout=CLOCK_S)
        await device.update()
        return device
    kind = DeviceConnectionParameters(
        DeviceFamily(job["family"]), DeviceEncryptionType.Klap, login_version=job["version"],
        http_port=job["port"])
    return await Device.connect(config=DeviceConfig(
        job["host"], port_override=job["port"], credentials=login_of(job), connection_type=kind,
        timeout=CLOCK_S))


def describe(device):
    """Return [alias, whether it is on, watts or None] of a plug, or of a strip's outlet."""
    meter = device.modules.get(Module.Energy)
    return [device.alias, device.is_on, meter.current_consumption if meter else None]


async def drive(job):
    """Return what was seen of the outlets before and after each word."""
    device = await find(job)
    seen = []
    try:
        for word in job["words"]:
            outlet = device.children[job["child"]] if device.children else device
            if word != "read":
                await (outlet.turn_on() if word == "on" else outlet.turn_off())
            await device.update()
            seen.append([describe(one) for one in device.children or [device]])
    finally:
        await device.disconnect()
    return {"class": type(device).__name__, "mac": device.mac, "seen": seen}


def read_session(job):
    """Return what each request says, and whether python-kasa would have sent the same bytes."""
    transport = KlapTransport if job["version"] == 1 else KlapTransportV2
    seeds = [bytes.fromhex(job["local_seed"]), bytes.fromhex(job["remote_seed"])]
    secret = transport.generate_auth_hash(login_of(job))
    session = KlapEncryptionSession(*seeds, secret)
    found = []
    for number, body in job["requests"]:
        session._seq = number
        session._generate_cipher()
        text = session.decrypt(bytes.fromhex(body))
        session._seq = number - 1
        same = session.encrypt(text) == (bytes.fromhex(body), number)
        found.append([text, same])
    proof = transport.handshake2_seed_auth_hash(*seeds, secret)
    return {"client_hash": proof.hex(), "requests": found}


def main():
    job = json.load(sys.stdin)
    found = read_session(job) if "requests" in job else asyncio.run(drive(job))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
