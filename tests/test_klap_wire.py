"""KLAP and SMART on the wire, with vectors published or computed by other implementations."""
import email.message
import itertools
import sys
import threading
import unittest
from unittest import mock

import fencetool
from fencetool import PowerState, ProtocolError
from tests.support import at_once
from tests.test_virtual_klap import TAPO_HASHES, VECTORS

# Source: FIPS 197 C.1 and appendix B, one block each.
BLOCKS = (
    ("000102030405060708090a0b0c0d0e0f", "00112233445566778899aabbccddeeff",
     "69c4e0d86a7b0430d8cdb78070b4c55a"),
    ("2b7e151628aed2a6abf7158809cf4f3c", "3243f6a8885a308d313198a2e0370734",
     "3925841d02dc09fbdc118597196a0b32"),
)
# Source: NIST SP 800-38A, F.2.1 (CBC) and F.1.1 (ECB).
CHAIN_KEY = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
CHAIN_IV = bytes.fromhex("000102030405060708090a0b0c0d0e0f")
CHAIN_PLAIN = bytes.fromhex("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
                            "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710")
CHAIN_CIPHER = bytes.fromhex("7649abac8119b246cee98e9b12e9197d5086cb9b507219ee95db113a917678b2"
                             "73bed6b8e3c1743b7116e69e222295163ff1caa1681fac09120eca307586e1a7")
SINGLE_CIPHER = bytes.fromhex("3ad77bb40d7a3660a89ecaf32466ef97f5d3d58503b9699de785895a96fdbaaf"
                              "43b1cd7f598ece23881b00e3ed0306887b0c785e27e8ad3f8223207104725dd4")
NO_IV = bytes(16)


class Aes(unittest.TestCase):
    def test_single_blocks_become_those_of_the_standard(self):
        rows = [tuple(bytes.fromhex(text) for text in row) for row in BLOCKS]
        rows += [(CHAIN_KEY, CHAIN_PLAIN[at:at + 16], SINGLE_CIPHER[at:at + 16])
                 for at in range(0, 64, 16)]
        for key, plain, cipher in rows:
            with self.subTest(cipher=cipher.hex()):
                self.assertEqual(fencetool.encrypt_aes_cbc(key, NO_IV, plain)[:16], cipher)

    def test_threads_that_need_the_tables_first_at_the_same_time_get_whole_ones(self):
        alone = fencetool.find_aes_tables()
        barrier = threading.Barrier(8)

        def find_when_all_are_there():
            barrier.wait(60)
            return list(fencetool.find_aes_tables())
        self.addCleanup(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(0.00001)
        fencetool.AES_TABLES.clear()
        for found in at_once([find_when_all_are_there] * barrier.parties):
            self.assertEqual(found, list(alone))

    def test_a_chain_of_blocks_becomes_that_of_the_standard_and_itself_again(self):
        cipher = fencetool.encrypt_aes_cbc(CHAIN_KEY, CHAIN_IV, CHAIN_PLAIN)
        self.assertEqual(cipher[:64], CHAIN_CIPHER)
        self.assertEqual(len(cipher), 80)  # a whole block of padding
        self.assertEqual(fencetool.decrypt_aes_cbc(CHAIN_KEY, CHAIN_IV, cipher), CHAIN_PLAIN)

    def test_every_length_and_every_byte_comes_back(self):
        data = bytes(range(256))
        for length in list(range(34)) + [256]:
            cipher = fencetool.encrypt_aes_cbc(CHAIN_KEY, CHAIN_IV, data[:length])
            self.assertEqual(len(cipher), length // 16 * 16 + 16)
            self.assertEqual(fencetool.decrypt_aes_cbc(CHAIN_KEY, CHAIN_IV, cipher), data[:length])

    def test_what_is_no_whole_number_of_blocks_is_refused(self):
        for length in (0, 1, 15, 17, 31):
            with self.subTest(length), self.assertRaises(ProtocolError):
                fencetool.decrypt_aes_cbc(CHAIN_KEY, CHAIN_IV, bytes(length))

    def test_a_padding_that_is_not_as_it_must_be_is_refused(self):
        good = b"0123456789abc" + b"\x03\x03\x03"
        for wrong in (good[:-1] + b"\x00", good[:-1] + b"\x11", good[:-1] + b"\x04",
                      good[:-2] + b"\x02\x03", good[:-3] + b"\x02\x03\x03"):
            cipher = fencetool.encrypt_aes_cbc(CHAIN_KEY, CHAIN_IV, wrong)[:16]
            with self.subTest(wrong), self.assertRaises(ProtocolError):
                fencetool.decrypt_aes_cbc(CHAIN_KEY, CHAIN_IV, cipher)
        cipher = fencetool.encrypt_aes_cbc(CHAIN_KEY, CHAIN_IV, good)[:16]
        self.assertEqual(fencetool.decrypt_aes_cbc(CHAIN_KEY, CHAIN_IV, cipher), good[:13])


def session_of(vector):
    """Return the KlapSession of a Vector."""
    proof = fencetool.build_klap_proof(vector.version, login_of(vector))
    return fencetool.KlapSession(proof, bytes.fromhex(vector.local_seed),
                                 bytes.fromhex(vector.remote_seed), "COOKIE")


def login_of(vector):
    return fencetool.KlapLogin(vector.login["username"], vector.login["password"])


class Handshake(unittest.TestCase):
    def test_logins_become_the_published_hashes(self):
        for vector in VECTORS:
            proof = fencetool.build_klap_proof(vector.version, login_of(vector))
            self.assertEqual(proof.auth_hash.hex(), vector.auth_hash)
        for version, expected in TAPO_HASHES.items():
            proof = fencetool.build_klap_proof(version, fencetool.KLAP_DEFAULTS[1])
            self.assertEqual(proof.auth_hash.hex(), expected)

    def test_sessions_get_the_published_keys(self):
        for vector in VECTORS:
            with self.subTest(vector.auth_hash):
                session = session_of(vector)
                self.assertEqual(session.client_hash.hex(), vector.client_hash)
                self.assertEqual(session.key.hex(), vector.key)
                self.assertEqual(session.vector.hex(), vector.iv)
                self.assertEqual(session.sequence, vector.sequence)
                self.assertEqual(session.signer.hex(), vector.signer)

    def test_messages_become_the_published_bytes_and_replies_are_understood(self):
        for vector in VECTORS:
            session = session_of(vector)
            for message in vector.messages:
                with self.subTest(message.request):
                    body = session.seal(message.request.encode("utf-8"))
                    self.assertEqual(body.hex(), message.body)
                    answer = session.unseal(bytes.fromhex(message.reply))
                    self.assertEqual(answer.decode("utf-8"), message.answer)

    def find(self, vector, *logins):
        return fencetool.find_klap_proof(
            logins + fencetool.KLAP_DEFAULTS, bytes.fromhex(vector.local_seed),
            bytes.fromhex(vector.remote_seed), bytes.fromhex(vector.server_hash))

    def test_one_answer_tells_the_version_and_which_login_it_is(self):
        given = fencetool.KlapLogin("user@example.com", "Secret-Passw0rd")
        for vector in VECTORS:
            proof = self.find(vector, given)
            self.assertEqual((proof.version, proof.login), (vector.version, login_of(vector)))

    def test_the_case_of_the_address_counts_and_the_reason_says_so(self):
        given = fencetool.KlapLogin("User@example.com", "Secret-Passw0rd")
        with self.assertRaises(fencetool.Refused) as caught:
            self.find(VECTORS[1], given)
        self.assertIn("capital letters", str(caught.exception))
        self.assertNotIn("Passw0rd", str(caught.exception))

    def test_a_machine_without_md5_speaks_version_2_and_says_why_not_version_1(self):
        given = fencetool.KlapLogin("user@example.com", "Secret-Passw0rd")
        with mock.patch("hashlib.md5", side_effect=ValueError("disabled for FIPS")):
            self.assertEqual(self.find(VECTORS[1], given).version, 2)
            with self.assertRaises(fencetool.Refused) as caught:
                self.find(VECTORS[0], given)
        self.assertIn("refuses the hash of version 1 of the protocol: disabled for FIPS",
                      str(caught.exception))
        with mock.patch("hashlib.sha1", side_effect=ValueError("disabled for FIPS")):
            self.assertEqual(self.find(VECTORS[0], given).version, 1)

    def test_a_cookie_is_the_session_alone_and_is_one(self):
        for lines, expected in (
                (["TP_SESSIONID=0F2A;TIMEOUT=86400"], "0F2A"),
                (["a=b", "x=1; TP_SESSIONID=0F2A"], "0F2A"),
                (["TP_SESSIONID=0F2A;TIMEOUT=1", "TP_SESSIONID=0F2A;TIMEOUT=2"], "0F2A")):
            headers = email.message.Message()
            for line in lines:
                headers["Set-Cookie"] = line
            self.assertEqual(fencetool.parse_klap_cookie(headers), expected)
        for lines in ([], ["TIMEOUT=86400"], ["TP_SESSIONID=1", "TP_SESSIONID=2"]):
            headers = email.message.Message()
            for line in lines:
                headers["Set-Cookie"] = line
            with self.subTest(lines), self.assertRaises(ProtocolError):
                fencetool.parse_klap_cookie(headers)

    def test_what_a_device_announces_is_read_or_nothing(self):
        for body, expected in (
                (b'{"result":{"mgt_encrypt_schm":{"encrypt_type":"AES"}}}', "AES"),
                (b'{"result":{}}', ""), (b'{"result":[]}', ""), (b"[1]", ""), (b"{", ""),
                (b"\xff", ""), (b"", "")):
            self.assertEqual(fencetool.parse_discovery(bytes(16) + body), expected)
        self.assertEqual(fencetool.parse_discovery(b""), "")


class Signature(unittest.TestCase):
    def test_a_reply_counts_only_with_the_signature_of_its_own_request(self):
        for vector in VECTORS[:2]:
            first, second = [bytes.fromhex(message.reply) for message in vector.messages]
            for wrong in (second, first[:-16], first[:-1], first[:32], first[:16], b"",
                          bytes([first[0] ^ 1]) + first[1:], first[:-1] + bytes([first[-1] ^ 1]),
                          first + bytes(16), b"<html><body>200 OK</body></html>" * 2):
                session = session_of(vector)
                session.seal(vector.messages[0].request.encode("utf-8"))
                with self.subTest(wrong.hex()), self.assertRaises(ProtocolError):
                    session.unseal(wrong)
            session = session_of(vector)
            for message in vector.messages:
                session.seal(message.request.encode("utf-8"))
            with self.assertRaises(ProtocolError):  # it answered the request before
                session.unseal(first)


def paths(value, path=()):
    """Yield where in a JSON value there is something: the value itself, and all in it."""
    yield path
    pairs = enumerate(value) if isinstance(value, list) else ()
    for key, member in value.items() if isinstance(value, dict) else pairs:
        for found in paths(member, path + (key,)):
            yield found


def replaced(value, path, new):
    """Return a JSON value with another one at that place."""
    if not path:
        return new if isinstance(new, dict) else {}  # a reply is an object, or it comes not so far
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[path[0]] = replaced(value[path[0]], path[1:], new) if path[1:] else new
    return changed


class Smart(unittest.TestCase):
    """The codec of SMART JSON."""

    INFO = {"device_id": "8022AA", "mac": "78-8C-B5-00-00-01", "type": "SMART.TAPOPLUG"}

    def ask_with(self, replies):
        """Return what a SmartPayload takes to ask: replies by method, one or a list of them.

        The last one of a list comes again and again.
        """
        left = {name: list(found) if isinstance(found, list) else [found]
                for name, found in replies.items()}

        def ask(request, parse):
            self.assertIn("terminal_uuid", request)
            *more, last = left[request["method"]]
            left[request["method"]] = more[1:] + [last]
            return parse(more[0] if more else last)
        return ask

    def describe(self, **replies):
        payload = fencetool.SmartPayload(fencetool.System("test"))
        info = dict(self.INFO, **replies.pop("info", {}))
        payload.has_component = False
        return payload.describe(self.ask_with(dict(
            replies, get_device_info={"result": info, "error_code": 0},
            get_child_device_component_list={"result": {
                "child_component_list": [{}], "sum": 1}, "error_code": 0})))

    def child(self, position, **members):
        return dict({"device_id": "8022AA%s" % position, "position": position,
                     "device_on": True, "nickname": "YQ=="}, **members)

    def pages(self, *lists, **members):
        start, found = 0, []
        count = sum(len(children) for children in lists)
        for children in lists:
            found.append({"error_code": 0, "result": dict({
                "child_device_list": children, "start_index": start, "sum": count}, **members)})
            start += len(children)
        return found

    def test_only_true_and_false_are_a_state(self):
        for value, state in ((True, PowerState.ON), (False, PowerState.OFF)):
            found = self.describe(info={"device_on": value})
            self.assertEqual([outlet.state for outlet in found.outlets], [state])
        for value in (0, 1, "false", None, [], {}):
            with self.subTest(value), self.assertRaises(ProtocolError):
                self.describe(info={"device_on": value})

    def test_names_are_decoded_and_a_strange_one_harms_nothing_but_itself(self):
        for name, expected in (("S8O8Y2hl", "Küche"), ("/w==", "\udcff"), ("!", ""), (None, ""),
                               (7, ""), ("ü", "")):
            found = self.describe(info={"device_on": True, "nickname": name})
            self.assertEqual(found.outlets[0].alias, expected)

    def describe_strip(self, *lists, **members):
        payload = fencetool.SmartPayload(fencetool.System("test"))
        payload.metered = ()
        return payload.describe(self.ask_with({
            "get_device_info": {"result": self.INFO, "error_code": 0},
            "get_child_device_list": self.pages(*lists, **members)}))

    def test_outlets_have_the_numbers_of_their_positions_whatever_their_order(self):
        found = self.describe_strip([self.child(3), self.child(1)], [self.child(2)])
        self.assertEqual([(outlet.number, outlet.identifiers[0]) for outlet in found.outlets],
                         [(1, "8022AA1"), (2, "8022AA2"), (3, "8022AA3")])

    def test_a_list_of_outlets_that_is_not_whole_is_an_error(self):
        for lists, members in (
                (([self.child(1)],), {"sum": 2, "start_index": 0}),
                (([self.child(1)], [self.child(2)]), {"start_index": 0}),
                (([self.child(1)], []), {"sum": 2}),
                (([],), {}), (([self.child(1), self.child(2)],), {"sum": 1}),
                (([self.child(1), self.child(1)],), {}),
                (([self.child(1), self.child(2, device_id="8022AA1")],), {}),
                (([self.child(0)],), {}), (([self.child("1")],), {}),
                (([self.child(1, original_device_id="8022BB")],), {}),
                (([self.child(1, device_on=0)],), {}), (([7],), {})):
            with self.subTest(lists=lists, **members), self.assertRaises(ProtocolError):
                self.describe_strip(*lists, **members)

    def test_a_strip_whose_pages_tell_two_sums_is_an_error(self):
        pages = self.pages([self.child(1)], [self.child(2)], [self.child(3)])
        pages[1]["result"]["sum"] = 2
        payload = fencetool.SmartPayload(fencetool.System("test"))
        with self.assertRaises(ProtocolError):
            payload.describe(self.ask_with({
                "get_device_info": {"result": self.INFO, "error_code": 0},
                "get_child_device_list": pages}))

    def test_a_bulb_is_refused(self):
        with self.assertRaises(fencetool.Refused):
            self.describe(info={"device_on": True, "type": "SMART.TAPOBULB"})

    def test_a_strip_that_does_not_tell_which_outlets_have_a_meter_is_asked_of_each(self):
        listed = {"error_code": 0, "result": {"start_index": 0, "sum": 2, "child_component_list": [
            {"device_id": "8022AA1", "component_list": [{"id": "energy_monitoring"}]},
            {"device_id": "8022AA2", "component_list": [{"id": "led"}]}]}}
        for reply, metered in ((listed, ["8022AA1"]),
                               ({"error_code": -1002}, ["8022AA1", "8022AA2"]),
                               ({"error_code": 0}, ["8022AA1", "8022AA2"])):
            payload = fencetool.SmartPayload(fencetool.System("test"))
            payload.has_component = False  # of the strip itself
            payload.describe(self.ask_with({
                "get_device_info": {"result": self.INFO, "error_code": 0},
                "get_child_device_list": self.pages([self.child(1), self.child(2)]),
                "get_child_device_component_list": reply}))
            self.assertEqual(payload.metered, metered)

    def inner(self, **members):
        return {"error_code": 0, "result": {"responseData": members}}

    def test_an_error_inside_a_success_is_an_error(self):
        self.assertEqual(fencetool.parse_tapo_result(
            self.inner(error_code=0), "set_device_info", "8022AA1"), {})
        for reply in (self.inner(error_code=-1301), self.inner(), {"error_code": 0},
                      {"error_code": 0, "result": {}}, {"error_code": -1},
                      {"error_code": 0, "result": {"responseData": 0}},
                      dict(self.inner(error_code=0), error_code=-1)):
            with self.subTest(reply), self.assertRaises(ProtocolError):
                fencetool.parse_tapo_result(reply, "set_device_info", "8022AA1")

    def test_a_reply_without_a_good_error_code_is_no_success(self):
        for reply in ({}, {"result": {}}, {"error_code": "0"}, {"error_code": False},
                      {"error_code": None}, {"error_code": -1, "result": {"device_on": False}},
                      {"error_code": 0, "result": []}):
            with self.subTest(reply), self.assertRaises(ProtocolError):
                fencetool.parse_tapo_result(reply, "get_device_info")

    def test_no_reply_does_more_than_to_be_refused(self):
        good = {
            "component_nego": {"error_code": 0, "result": {"component_list": [
                {"id": "energy_monitoring", "ver_code": 2}]}},
            "get_device_info": {"error_code": 0, "result": self.INFO},
            "get_child_device_list": self.pages([self.child(1), self.child(2)])[0],
            "get_child_device_component_list": {"error_code": 0, "result": {
                "start_index": 0, "sum": 1, "child_component_list": [
                    {"device_id": "8022AA1", "component_list": [{"id": "led"}]}]}},
            "control_child": {"error_code": 0, "result": {"responseData": {
                "error_code": 0, "result": {"power_mw": 1, "current_power": 1}}}}}
        for method, path in [(name, path) for name in good for path in paths(good[name])]:
            for odd in (None, True, 0, -1, 7, 1e9, "", "x", [], [0], {}, {"x": 0}):
                replies = dict(good, **{method: replaced(good[method], path, odd)})
                with self.subTest(method, path=path, odd=odd):
                    self.use_all(self.ask_with(replies))

    def use_all(self, ask):
        payload = fencetool.SmartPayload(fencetool.System("test"))
        try:
            if payload.is_understood(ask):
                payload.describe(ask)
                payload.read_meter(ask, "8022AA2", 2)
                payload.switch(ask, "8022AA2", PowerState.OFF)
        except fencetool.FenceError:
            pass

    def test_errors_of_sessions_and_logins_are_told_apart(self):
        for code in fencetool.TAPO_SESSION_ERRORS:
            with self.assertRaises(fencetool.Unreachable) as caught:
                fencetool.parse_tapo_result({"error_code": code}, "get_device_info")
            self.assertTrue(caught.exception.was_closed)
        for code in fencetool.TAPO_LOGIN_ERRORS:
            with self.assertRaises(fencetool.Refused):
                fencetool.parse_tapo_result({"error_code": code}, "get_device_info")

    def read_meter(self, codes=(-1002,) * 3, **results):
        """Return the MeterReading where methods without a result answer with these codes."""
        payload = fencetool.SmartPayload(fencetool.System("test"))
        payload.metered = (None,)
        found = {meter.method: {"error_code": code}
                 for meter, code in zip(fencetool.TAPO_METERS, codes)}
        found.update((name, {"error_code": 0, "result": result})
                     for name, result in results.items())
        return payload.read_meter(self.ask_with(found), None, None)

    def test_each_way_to_ask_a_meter_has_its_own_unit(self):
        for replies in ({"get_emeter_data": {"power_mw": 43000}},
                        {"get_energy_usage": {"current_power": 43000}},
                        {"get_energy_usage": {"today_energy": 1},
                         "get_current_power": {"current_power": 43}}):
            with self.subTest(replies):
                self.assertEqual(self.read_meter(**replies).watts, 43)

    def test_only_the_answer_that_a_method_is_unknown_means_no_meter(self):
        self.assertIsNone(self.read_meter().watts)
        for result in ({"power_mw": "43"}, {"power_mw": None}, {"power_mw": True}):
            with self.subTest(result), self.assertRaises(ProtocolError):
                self.read_meter(get_emeter_data=result)
        with self.assertRaises(ProtocolError):  # there is one, and it does not tell
            self.read_meter(get_energy_usage={"today_energy": 1})
        for code, place in itertools.product((-1, -1001, -1003, -1008, -1301), range(3)):
            codes = [-1002] * 3
            codes[place] = code
            with self.subTest(codes), self.assertRaises(ProtocolError):
                self.read_meter(codes)
        for code in fencetool.TAPO_SESSION_ERRORS + fencetool.TAPO_LOGIN_ERRORS:
            with self.subTest(code), self.assertRaises(
                    (fencetool.Unreachable, fencetool.Refused)):
                self.read_meter([code, -1002, -1002], get_energy_usage={"current_power": 0})

    def test_a_way_to_ask_that_fails_does_not_hide_another_that_works(self):
        self.assertEqual(self.read_meter(
            (-1003, -1, -1002), get_energy_usage={"current_power": 43000}).watts, 43)

    def test_a_device_that_does_not_tell_its_components_may_have_a_meter(self):
        for reply, metered in (
                ({"error_code": -1003}, (None,)), ({"error_code": -1002}, (None,)),
                ({"error_code": 0, "result": {"component_list": [{"id": "led"}]}}, ()),
                ({"error_code": 0, "result": {"component_list": [
                    {"id": "led"}, {"id": "energy_monitoring", "ver_code": 2}]}}, (None,))):
            payload = fencetool.SmartPayload(fencetool.System("test"))
            ask = self.ask_with({"component_nego": reply, "get_device_info": {
                "error_code": 0, "result": dict(self.INFO, device_on=True)}})
            self.assertTrue(payload.is_understood(ask))
            self.assertIs(payload.describe(ask).has_meter, bool(metered))
            self.assertEqual(payload.metered, metered)
        self.assertFalse(fencetool.SmartPayload(fencetool.System("test")).is_understood(
            self.ask_with({"component_nego": {}})))
