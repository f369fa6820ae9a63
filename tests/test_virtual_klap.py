"""The virtual KLAP devices themselves: published vectors, and that nothing false gets past them."""
import base64
import http.client
import json
import socket
import struct
import unittest
from collections import namedtuple

import fencetool
from tests import virtual_klap, virtual_smart
from tests.support import AgentTest
from tests.virtual_klap import (
    ACCOUNT, BLANK, KASA_DEFAULT, KlapPlug, KlapStrip, OldKlapPlug, SmartPlug, SmartStrip,
    TAPO_DEFAULT)

# Computed by the transport classes of python-kasa 0.12.0 against a server with another AES.
Vector = namedtuple("Vector", "version login local_seed remote_seed auth_hash server_hash "
                              "client_hash key iv sequence signer messages")
# One request and its reply: what they say, and their bytes.
Message = namedtuple("Message", "request body answer reply")
SEEDS = {"local_seed": "000102030405060708090a0b0c0d0e0f",
         "remote_seed": "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"}
SYSINFO = '{"system":{"get_sysinfo":{}}}'
SMART_HEAD = ('"request_time_milis":1700000000000,'
              '"terminal_uuid":"AAAAAAAAAAAAAAAAAAAAAA=="')
VECTORS = (
    Vector(
        version=1, login=ACCOUNT, auth_hash="3b125adfca3442d327db7e25724945d0",
        server_hash="c024f9252307032540d8fc19fd9cef335e8ac3d0062cb59bec800d4116ba1f37",
        client_hash="a37b4d126e583ef0fc2473565d9dceff2e855857f8088a79ca4223af6ba15791",
        key="2b3b65f9edf59f6079946469afeddbc1", iv="b415a20758b8c2f8589cf150",
        sequence=-852816628,
        signer="5c01521de8df93389fc26ced67112d38f8f6ed54933b92517c8b318f",
        messages=(
            Message(SYSINFO,
                    "bb04c1defcea28060fbe31a5461d1acfa69966b6c7023b210f051ed1d441932a"
                    "b08007656010819d6b18de532597715e6f69298f9c3fd7d068c5c0cf976e4b33",
                    '{"system":{"get_sysinfo":{"err_code":0,"relay_state":1}}}',
                    "f5283d2a6e091ff44c8d8decd9509eb9cabe9ef16f840979c8ea6a7d5823d3ba"
                    "b08007656010819d6b18de532597715ee08397a6bcfa05e2563606e572594edc"
                    "e96fd596cef3b1be50ff6ed13b3c024aa756a6909120f7da3f37a60541637e79"),
            Message('{"system":{"set_relay_state":{"state":0}}}',
                    "cfe4ded3693c6813097a7f2a269d7e1320b7611f538bfde381ea639ee88f5a70"
                    "d8b893abbf337bffa10c9cb4ebd8d52ae19a4200333a24e8acc6e0325d2b23cf"
                    "1670c09d7e89c75bdaf6354df19f8eed",
                    '{"system":{"set_relay_state":{"err_code":0}}}',
                    "4c969b47fbb2778b7791e77c11c68cd47be3e95347cb8099546ed7067593663c"
                    "d8b893abbf337bffa10c9cb4ebd8d52a5b8a1bf17fdc73c81e7cd90c3b2a461d"
                    "3cd2d9a6318b5d281dca3c3c470a9643")), **SEEDS),
    Vector(
        version=2, login=ACCOUNT,
        auth_hash="d6484efdff89a6e8c989c48fc2bd8213b835d71479448054cc7b9d2359f54edb",
        server_hash="5297beb247992eff91049b455a0c9ef2495b552cad4b3ddf051b39d6cb638262",
        client_hash="13d5aca9dd73d435a2d2a84d30d1e6192537fb5f1f2998d3a6de80bb9a3d5ec6",
        key="e6e0218edb77ab95ea89acf711792a6d", iv="350715b67d1a8666526c1f1e",
        sequence=1984497276,
        signer="f24eae531fa68e42fe61333641a4fb4499925e6292e12d0e0e3b187c",
        messages=(
            Message('{"method":"get_device_info",%s}' % SMART_HEAD,
                    "717afbc34617b7b8e7613ef28b2408ea5bf5759fbb3d2f0dad06e4a3167f74ec"
                    "81d05c1c0a815caec235054e40473bd1697896a03570b91cd70006ac7469b803"
                    "a4b136ac8689497fe080417715b6af10b14c1d2d8e90fc64d0f0ee3e596e40e2"
                    "7ad8d5f8eda72360990a86aed50a2bdd090ee8ce14b03ac5c8c88ffbafe2302c"
                    "f091e84947b36a4e4a12258c85ab304a",
                    '{"result":{"device_on":true},"error_code":0}',
                    "f4c4f767e44b71d71d33f188acbd3aba4d64a8c2c334436a32d3361b8007f4d2"
                    "e60714dcc7b575c7bc604aa05e0da9c98d20a7b95c8c35c4108878b4c0b1a745"
                    "257c444a23b20629ff2280c4aa1d24de"),
            Message('{"method":"set_device_info",%s,"params":{"device_on":false}}' % SMART_HEAD,
                    "d7ff48126632c24714f5b03445dfaed75d9410b6da10c9f26981134b69ec9f40"
                    "fcd922b3252b2c89a317d0767accc65ac315641ce68c86440b20a50544598db8"
                    "22b505882450664919fdde8e3f3f501f20e82b6309c1ac8c0ac759b6eb85ee74"
                    "934727255863bef7bd417ced22951726b51ec8a44ded0cf2ceec3c27650e52ea"
                    "fc3068a436c901704abf129342ee2d8f30a4d25e8660146fb4cef9e2e9c67482"
                    "b43348716f36ab2f94478dae8f5ccd39",
                    '{"error_code":0}',
                    "8c92338be5b2710e3f7c3005b9bc475c0d4ebc15bd92319716e667017ee762ad"
                    "95e4d7e03b8825381ded03c1dac504c1f4c6d2f28eac8832bb0dfdd1a0b5b8b5")),
        **SEEDS),
    Vector(
        version=1, login=KASA_DEFAULT, local_seed="a5" * 16, remote_seed="5a" * 16,
        auth_hash="74b751bdd208bc155ae2a6d4167cc44d",
        server_hash="790b69fea6eaea15f2631b09c941ed381031f6e00f7d5994567f1cfb36e8d378",
        client_hash="6bad19ffd2c51ac59405d00c301fc7eb441816f4593d9ef63790a0a7820d1e12",
        key="7a212136a09c3121c5657f9eb6abe5fb", iv="ee85660cb524a06c047cf075",
        sequence=-1105047520,
        signer="6fa913de09894ae8319eac3f430a608a5622fe7fbf2069351a2677cd",
        messages=(
            Message(SYSINFO,
                    "b9a6a3b163633bae023930a73470ade151a6c882eec05a14b597b516fdc5661e"
                    "95b672d58adab83dc7ead4b278484c9b53376ea9e06ebf7bafa250c95a01bda8",
                    '{"system":{"get_sysinfo":{"err_code":0}}}',
                    "34c920fb84368dc4f5ee79361e1132489927cb1ee255d47207b2c5cd12661875"
                    "95b672d58adab83dc7ead4b278484c9b5f82e2f145b269c828b662afa947cd52"
                    "85815572ae59a5024e5e6172df84a136"),)),
    Vector(
        version=2, login=BLANK, local_seed="00" * 16, remote_seed="ff" * 16,
        auth_hash="b8628ab91c74f531603f6d5b45e730e54c123a7247b8978272c03f1e13560cea",
        server_hash="c2a23cf5baaa7692006ecbd405e359b311a5c7de6dba681be47872ce0739715f",
        client_hash="40cc4b09da2c86e43e54a3aa42fb3b5165be6f1d0f7a3965cce189a26fc0dc2b",
        key="66399873314da46aba19ae2fab034e97", iv="dcd7f1f073e102ae4c453749",
        sequence=1911756335,
        signer="4913523241d6e392c1fdf96800c0f96bc7f1470d30b1286a1686e7eb",
        messages=(
            Message(SYSINFO,
                    "5c8504550f16beeb0678fb5cb64399dda0bb9e58e519ec848a264d3800ecfa86"
                    "b50cd7e85c041defcc6d72ccef7fbeb74e7f22cb953178e8029a0317d8da17fc",
                    '{"system":{"get_sysinfo":{"err_code":0}}}',
                    "0bb52cc5e2837d61877567a24c048a7f76e5821f180865f6bd7618910de22e53"
                    "b50cd7e85c041defcc6d72ccef7fbeb77c97ae5efaa418cb7400cd7e9e9bcf6e"
                    "a97254426049e4f7e2c758d459b27291"),)))
# auth_hash of the Tapo default, by version.
TAPO_HASHES = {1: "a7317ea07dd83e3393fb702d9bf309a7",
               2: "7d5ae9ac18f5bb37843a4577867dd4348d8dff26c4b261ebff1b74d88adc063b"}
PROBE = bytes.fromhex("020000010000000000000000463cb5d3")


class Vectors(AgentTest):
    def test_a_session_is_that_of_the_vectors(self):
        for vector in VECTORS:
            auth_hash = virtual_klap.hash_login(vector.version, **vector.login)
            session = virtual_klap.Session(
                vector.version, bytes.fromhex(vector.local_seed),
                bytes.fromhex(vector.remote_seed), auth_hash)
            with self.subTest(vector.auth_hash):
                self.assertEqual(auth_hash.hex(), vector.auth_hash)
                for name in ("server_hash", "client_hash", "key", "iv", "signer"):
                    self.assertEqual(getattr(session, name).hex(), getattr(vector, name), name)
                self.assertEqual(session.sequence, vector.sequence)
                for number, message in enumerate(vector.messages, vector.sequence + 1):
                    self.assertEqual(session.open(number, bytes.fromhex(message.body)),
                                     message.request.encode())
                    self.assertEqual(session.seal(number, message.answer.encode()).hex(),
                                     message.reply)

    def test_the_logins_of_tapo_devices_without_an_account_are_known(self):
        for version, wanted in TAPO_HASHES.items():
            self.assertEqual(virtual_klap.hash_login(version, **TAPO_DEFAULT).hex(), wanted)

    def test_a_device_obeys_the_bytes_of_the_vectors(self):
        for vector in VECTORS:
            is_smart = '"method"' in vector.messages[0].request
            make = SmartPlug if is_smart else KlapPlug
            device = self.start(make(version=vector.version, remote_seed=bytes.fromhex(
                vector.remote_seed), **vector.login))
            client = Client(device)
            with self.subTest(vector.auth_hash):
                status, reply, cookie = client.post(
                    "handshake1", bytes.fromhex(vector.local_seed))
                self.assertEqual((status, reply.hex()),
                                 (200, vector.remote_seed + vector.server_hash))
                cookie, _, rest = cookie.partition(";")
                self.assertEqual(rest, "TIMEOUT=86400")
                self.assertEqual(client.post("handshake2", bytes.fromhex(vector.client_hash),
                                             cookie)[0], 200)
                for number, message in enumerate(vector.messages, vector.sequence + 1):
                    status, reply, _ = client.post("request?seq=%d" % number,
                                                   bytes.fromhex(message.body), cookie)
                    self.assertEqual(status, 200)
                self.assertEqual(device.complaints, [])
                self.assertIs(device.outlets[0].powered, len(vector.messages) == 1)


class Client:
    """A client that does as it is told, right or wrong."""

    def __init__(self, device, **login):
        self.device = device
        self.login = login or {"username": device.username, "password": device.password}
        self.local_seed = bytes(range(16))

    def post(self, step, body, cookie="", **fields):
        """Return (status, body, the cookie that came)."""
        if cookie:
            fields["Cookie"] = cookie
        connection = http.client.HTTPConnection(*self.device.address, timeout=20)
        try:
            connection.request("POST", "/app/" + step, body, fields)
            response = connection.getresponse()
            return response.status, response.read(), response.getheader("Set-Cookie")
        finally:
            connection.close()

    def log_in(self):
        status, reply, cookie = self.post("handshake1", self.local_seed)
        assert (status, len(reply)) == (200, 48), status
        self.session = virtual_klap.Session(
            self.device.version, self.local_seed, reply[:16],
            virtual_klap.hash_login(self.device.version, **self.login))
        self.cookie = cookie.partition(";")[0]
        assert self.post("handshake2", self.session.client_hash, self.cookie)[0] == 200
        return self

    def ask_raw(self, request):
        """Return (status, body) of the answer to the next request, a JSON object."""
        self.session.sequence += 1
        number = self.session.sequence
        return self.post("request?seq=%d" % number, self.session.seal(
            number, json.dumps(request).encode()), self.cookie)[:2]

    def ask(self, request):
        status, body = self.ask_raw(request)
        assert status == 200, status
        return json.loads(self.session.open(self.session.sequence, body).decode())

    def call(self, method, **params):
        return self.ask({"method": method, "params": params})

    def control(self, child_id, method, **params):
        reply = self.call("control_child", device_id=child_id, requestData={
            "method": method, "params": params})
        return reply["result"]["responseData"]


class Strictness(AgentTest):
    """A client that does not keep to the protocol gets nothing, and is told of."""

    def log_in(self, make=KlapPlug, **options):
        device = self.start(make(**options))
        return device, Client(device).log_in()

    def assert_complaint(self, device, status, *words):
        self.assertEqual(status, 400)
        self.assertEqual(len(device.complaints), 1, device.complaints)
        for word in words:
            self.assertIn(word, device.complaints[0])
        self.assertEqual(device.commands, 0)

    def test_a_request_has_the_next_number(self):
        for step in (-1, 0, 2):
            device, client = self.log_in()
            number = client.session.sequence + step
            status = client.post("request?seq=%d" % number, client.session.seal(
                number, SYSINFO.encode()), client.cookie)[0]
            self.assert_complaint(device, status, "follows")

    def test_a_request_carries_the_right_signature(self):
        device, client = self.log_in()
        number = client.session.sequence + 1
        body = client.session.seal(number, SYSINFO.encode())
        status = client.post("request?seq=%d" % number, b"\0" * 32 + body[32:], client.cookie)[0]
        self.assert_complaint(device, status, "signature")

    def test_the_session_is_named_exactly_and_its_time_is_not_sent_back(self):
        for change in (lambda cookie: cookie + ";TIMEOUT=86400", lambda cookie: "",
                       lambda cookie: cookie + "; x=1"):
            device = self.start(KlapPlug())
            client = Client(device)
            _, reply, cookie = client.post("handshake1", client.local_seed)
            client.post("handshake2", b"", change(cookie.partition(";")[0]))
            self.assertIn("cookie", device.complaints[0])

    def test_the_client_proves_that_it_knows_the_login(self):
        device = self.start(KlapPlug())
        client = Client(device)
        _, reply, cookie = client.post("handshake1", client.local_seed)
        cookie = cookie.partition(";")[0]
        self.assertEqual(client.post("request?seq=1", b"x", cookie)[0], 403)
        status = client.post("handshake2", b"\0" * 32, cookie)[0]
        self.assert_complaint(device, status, "client_hash")

    def test_a_new_login_throws_out_the_oldest(self):
        for kept in (1, 2):
            device, first = self.log_in(sessions_kept=kept)
            for _ in range(kept):
                self.assertEqual(first.ask_raw(json.loads(SYSINFO))[0], 200)
                Client(device).log_in()
            self.assertEqual(first.ask_raw(json.loads(SYSINFO))[0], 403)
            self.assertEqual(device.complaints, [])

    def test_a_session_may_end_after_some_requests(self):
        device, client = self.log_in(requests_a_session=2)
        found = [client.ask_raw(json.loads(SYSINFO))[0] for _ in range(3)]
        self.assertEqual(found, [200, 200, 403])


class Payloads(AgentTest):
    def open(self, make, *arguments, **options):
        device = self.start(make(*arguments, **options))
        return device, Client(device).log_in()

    def test_old_commands_travel_in_both_versions(self):
        for make in (OldKlapPlug, KlapPlug, KlapStrip):
            device, client = self.open(make)
            info = client.ask({"system": {"get_sysinfo": {}}})["system"]["get_sysinfo"]
            self.assertEqual("children" in info, make is KlapStrip)
            self.assertEqual(client.ask({"system": {"set_relay_state": {"state": 0}}}),
                             {"system": {"set_relay_state": {"err_code": 0}}})
            self.assertFalse(device.outlets[0].powered)
            self.assertEqual(client.ask({"method": "get_device_info"}), {})

    def test_a_smart_plug_tells_itself_switches_and_measures(self):
        device, client = self.open(SmartPlug, ["n\u00f6de"], metered=True)
        info = client.call("get_device_info")["result"]
        self.assertEqual(base64.b64decode(info["nickname"]).decode(), "n\u00f6de")
        self.assertEqual((info["device_on"], info["mac"]), (True, "CC-32-E5-00-00-01"))
        self.assertEqual(client.call("get_energy_usage")["result"]["current_power"], 43000)
        self.assertEqual(client.call("get_current_power")["result"]["current_power"], 43)
        self.assertEqual(client.call("get_emeter_data")["result"]["power_mw"], 43000)
        self.assertEqual(client.call("set_device_info", device_on=False), {"error_code": 0})
        self.assertFalse(device.outlets[0].powered)
        self.assertEqual(client.call("get_emeter_data")["result"]["power_mw"], 0)
        self.assertEqual(client.call("set_device_info", device_on=1), {
            "error_code": virtual_smart.PARAMETERS_ERROR})
        self.assertEqual(client.call("no_such"), {"error_code": virtual_smart.UNKNOWN_METHOD})

    def test_a_smart_plug_leaves_out_of_its_meter_what_it_is_told_to(self):
        _, client = self.open(SmartPlug, metered=True, meter_members={
            "get_emeter_data": None, "get_energy_usage": {"current_power": None},
            "get_current_power": {"current_power": 7}})
        self.assertEqual(client.call("get_emeter_data"),
                         {"error_code": virtual_smart.UNKNOWN_METHOD})
        self.assertNotIn("current_power", client.call("get_energy_usage")["result"])
        self.assertEqual(client.call("get_current_power")["result"], {"current_power": 7})

    def test_a_smart_plug_stops_a_batch_at_the_first_error(self):
        _, client = self.open(SmartPlug)
        methods = ("get_device_info", "get_emeter_data", "get_device_info")
        requests = [{"method": method} for method in methods]
        found = client.call("multipleRequest", requests=requests)["result"]["responses"]
        self.assertEqual([(one["method"], one["error_code"]) for one in found], [
            ("get_device_info", 0), ("get_emeter_data", virtual_smart.UNKNOWN_METHOD)])

    def test_a_smart_strip_lists_its_outlets_in_pages_and_in_no_order(self):
        _, client = self.open(SmartStrip, ["a", "b", "c"], page=2)
        self.assertNotIn("device_on", client.call("get_device_info")["result"])
        found = []
        for start, shown in ((0, 2), (2, 1)):
            part = client.call("get_child_device_list", start_index=start)["result"]
            self.assertEqual((part["start_index"], part["sum"]), (start, 3))
            self.assertEqual(len(part["child_device_list"]), shown)
            found += part["child_device_list"]
        self.assertEqual([child["position"] for child in found], [3, 2, 1])
        self.assertEqual({child["slot_number"] for child in found}, {3})

    def test_a_smart_strip_switches_and_measures_one_outlet(self):
        device, client = self.open(SmartStrip, ["a", "b"], metered=True)
        child = device.child_id(device.outlets[1])
        self.assertEqual(client.control(child, "get_current_power")["result"],
                         {"current_power": 43})
        self.assertEqual(client.control(child, "get_emeter_data"),
                         {"error_code": virtual_smart.UNKNOWN_METHOD})
        device.has_emeter = True  # as on the P210M
        self.assertEqual(client.control(child, "get_emeter_data")["result"]["power_mw"], 43000)
        self.assertEqual(client.control(child, "set_device_info", device_on=False),
                         {"error_code": 0})
        self.assertEqual([outlet.powered for outlet in device.outlets], [True, False])
        self.assertEqual(client.control(child, "get_current_power")["result"],
                         {"current_power": 0})
        self.assertFalse(client.control(child, "get_device_info")["result"]["device_on"])
        self.assertEqual(client.call("control_child", device_id="x", requestData={}),
                         {"error_code": virtual_smart.PARAMETERS_ERROR})


class Faults(AgentTest):
    """Each fault does what its name says: a test over all of them would else prove nothing."""

    def open(self, make, fault, **options):
        device = self.start(make(["a", "b"][:1 + (make is SmartStrip)], fault=fault, **options))
        return device, Client(device).log_in()

    def read(self, client):
        return client.ask_raw({"method": "get_device_info"})

    def test_what_is_no_answer_to_a_request(self):
        for fault, found in (("lost_session", 403), ("html", 200), ("clear", 200), ("odd", 200),
                             ("cut", 200), ("wrong_signature", 200), ("replay", 200),
                             ("other_number", 200)):
            device, client = self.open(SmartPlug, fault)
            for _ in range(2):
                status, body = self.read(client)
                with self.subTest(fault):
                    self.assertEqual(status, found)
                    with self.assertRaises(ValueError):
                        client.session.open(client.session.sequence, body)
            self.assertEqual(device.complaints, [])

    def test_a_repeated_answer_is_rightly_signed_for_the_request_before(self):
        for fault, step in (("replay", -1), ("other_number", 1)):
            _, client = self.open(SmartPlug, fault)
            for _ in range(2):
                status, body = self.read(client)
                number = client.session.sequence + step
                self.assertIn(b"device_on", client.session.open(number, body))

    def test_steps_that_fail_before_any_request(self):
        for fault, found in (("forbidden", 403), ("busy", 503), ("portal", 200),
                             ("redirect", 302), ("server_error", 500)):
            device = self.start(KlapPlug(fault=fault))
            status, body, cookie = Client(device).post("handshake1", bytes(16))
            self.assertEqual((status, cookie), (found, None))
        device = self.start(KlapPlug(fault="no_cookie"))
        status, body, cookie = Client(device).post("handshake1", bytes(16))
        self.assertEqual((status, len(body), cookie), (200, 48, None))

    def test_a_stranger_has_another_login(self):
        device = self.start(KlapPlug(fault="stranger"))
        _, body, _ = Client(device).post("handshake1", bytes(16))
        known = virtual_klap.hash_login(2, **ACCOUNT)
        self.assertNotEqual(virtual_klap.sha256(bytes(16), body[:16], known), body[16:])

    def test_an_error_inside_is_not_told_outside(self):
        device, client = self.open(SmartStrip, "inner_error")
        child = device.child_id(device.outlets[0])
        self.assertEqual(client.control(child, "set_device_info", device_on=False),
                         {"error_code": virtual_smart.DEVICE_ERROR})
        self.assertEqual(device.commands, 0)
        _, client = self.open(SmartPlug, "expired")
        self.assertEqual(client.call("get_device_info"), {"error_code": 9999})

    def test_lists_that_are_wrong_or_in_another_order(self):
        found = {}
        sums = set()
        for fault in ("cut_list", "short_list", "twins", "shuffled"):
            _, client = self.open(SmartStrip, fault)
            lists = [client.call("get_child_device_list", start_index=0)["result"]
                     for _ in range(2)]
            found[fault] = [[child["position"] for child in one["child_device_list"]]
                            for one in lists]
            sums.add((fault, lists[0]["sum"]))
        self.assertEqual(found, {"cut_list": [[2], [2]], "short_list": [[2], [2]],
                                 "twins": [[1, 1], [1, 1]], "shuffled": [[2, 1], [1, 2]]})
        self.assertEqual(sums, {("cut_list", 2), ("short_list", 1), ("twins", 2), ("shuffled", 2)})

    def test_a_frozen_device_switches_and_does_not_tell(self):
        device, client = self.open(SmartPlug, "frozen")
        client.call("set_device_info", device_on=False)
        self.assertFalse(device.outlets[0].powered)
        self.assertTrue(client.call("get_device_info")["result"]["device_on"])

    def test_another_device_takes_over_before_it_is_switched(self):
        for fault in ("exchanged", "usurped"):
            device, client = self.open(SmartPlug, fault)
            before = client.call("get_device_info")["result"]["device_id"]
            off = {"method": "set_device_info", "params": {"device_on": False}}
            self.assertEqual(client.ask_raw(off)[0], 403)
            self.assertEqual(device.commands, 0)
            login = ACCOUNT if fault == "exchanged" else virtual_klap.STRANGER
            other = Client(device, **login).log_in()
            self.assertNotEqual(other.call("get_device_info")["result"]["device_id"], before)

    def test_answers_to_order_come_first(self):
        device, client = self.open(SmartPlug, "", error_codes=[-40401])
        self.assertEqual(client.call("get_device_info"), {"error_code": -40401})
        device.next_replies = [(429, {}, b"")]
        self.assertEqual(self.read(client)[0], 429)


class Datagrams(AgentTest):
    def start_discoverable(self, make, **options):
        return self.start(make(**options), virtual_klap.own_address())

    def ask(self, device, message):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
            handle.settimeout(20)
            handle.sendto(message, (device.address[0], virtual_klap.DISCOVERY_PORT))
            return handle.recv(4096)

    def test_a_probe_is_answered_with_what_the_device_speaks(self):
        for make, scheme in ((OldKlapPlug, {}), (SmartPlug, {"lv": 2, "new_klap": 1})):
            device = self.start_discoverable(make, is_discoverable=True)
            answer = self.ask(device, PROBE)
            self.assertEqual(struct.unpack(">H", answer[4:6])[0], len(answer) - 16)
            result = json.loads(answer[16:].decode())["result"]
            self.assertEqual(result["device_type"], device.family)
            self.assertEqual(result["mgt_encrypt_schm"], dict(scheme, **{
                "is_support_https": False, "encrypt_type": "KLAP",
                "http_port": device.address[1]}))

    def test_a_sleeping_device_is_closed_until_it_is_looked_for(self):
        device = self.start_discoverable(SmartPlug, is_asleep=True)
        with self.assertRaises(ConnectionRefusedError):
            Client(device).log_in()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:  # nonsense is no probe
            handle.sendto(PROBE[:15], (device.address[0], virtual_klap.DISCOVERY_PORT))
        self.ask(device, PROBE)
        self.assertEqual(device.probes, 1)
        Client(device).log_in()

    def test_the_checksum_of_a_probe_is_that_of_the_published_one(self):
        self.assertEqual(virtual_klap.check_probe(PROBE), 0)
        with_body = bytes.fromhex("02000001000d1100010203041fe7fcea7b22706172616d73223a7b7d7d")
        self.assertEqual(virtual_klap.check_probe(with_body), 0x01020304)
        answer = virtual_klap.build_datagram(7, {"a": 1})
        self.assertEqual((virtual_klap.check_probe(answer), answer[16:]), (7, b'{"a": 1}'))
        with self.assertRaises(ValueError):
            virtual_klap.check_probe(PROBE[:-1] + b"\0")


class Families(unittest.TestCase):
    def test_every_fault_has_its_place_in_the_contract(self):
        for device in virtual_klap.DEVICES:
            known = set(device.faults)
            self.assertLessEqual(device.harmless | device.readable | set(device.no_faults), known)
            self.assertEqual(fencetool.DIALECTS[device.dialect].agent, "fence_kasa")
