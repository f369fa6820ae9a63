"""fence_http as a process against virtual devices on real sockets."""
import functools
import os
import re
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
from unittest import mock

import fencetool
from tests import support, virtual
from tests.support import AgentTest, at_once, in_argv, on_stdin
from tests.test_http_wire import ESPHOME_URLS, HTTP_URLS, TASMOTA_URLS

BOTH_WAYS = (on_stdin, in_argv)
# More at once than there are cores starve each other out of their limits.
WORKERS = 8
PASSWORD = "s3cret &%+/\u00fc"

STRICT_URLS = dict(HTTP_URLS, status_on_regex='^{"outlet":1,"state":"ON"}$',
                   status_off_regex='^{"outlet":1,"state":"OFF"}$')


def call(way, parameters, **more):
    return functools.partial(way, "fence_http", dict(parameters, **more))


def make_variants():
    """Return {name: (virtual device, parameters)}: what must work, for each family."""
    tasmota, esphome, switch = (
        virtual.Tasmota, virtual.Esphome, virtual.Switch)
    login = {"username": "admin", "password": PASSWORD}
    four = ("POWER1", "POWER2", "POWER3", "POWER4")
    digest = {"password": PASSWORD, "algorithm": "MD5"}
    return {
        "tasmota, playbook": (tasmota(), dict(TASMOTA_URLS, username="admin")),
        "tasmota, playbook, password": (tasmota(password=PASSWORD), dict(TASMOTA_URLS, **login)),
        "tasmota, old firmware, password, no user": (
            tasmota(password=PASSWORD, old=True), dict(TASMOTA_URLS, password=PASSWORD)),
        "tasmota, relay 3 of 4 by its URLs": (tasmota(four), {
            name: value.replace("Power", "Power3") for name, value in TASMOTA_URLS.items()}),
        "tasmota, relay 3 of 4 by switch_name, password": (
            tasmota(four, password=PASSWORD), dict(login, device="tasmota", switch_name="3")),
        "tasmota, SetOption128 0": (tasmota(referer=True), TASMOTA_URLS),
        "tasmota, meter": (tasmota(metered=True, always_metered=True), dict(
            TASMOTA_URLS, power_meter="require")),
        "tasmota, one meter for two relays": (
            tasmota(["POWER1", "POWER2"], metered=True, always_metered=True),
            dict(TASMOTA_URLS, plug="1")),
        "openbeken": (virtual.OpenBeken(metered=True), TASMOTA_URLS),
        "openbeken, relay 3 of 4, password": (
            virtual.OpenBeken(four, password=PASSWORD),
            dict(login, device="tasmota", plug="3")),
        "esphome 2024, playbook": (esphome(["Relay"], version="2024"), ESPHOME_URLS),
        "esphome 2024, playbook, Basic": (
            esphome(["Relay"], version="2024", password=PASSWORD), dict(ESPHOME_URLS, **login)),
        "esphome 2024, Digest, by name": (
            esphome(["K\u00fcche (1)", "b"], version="2024", **digest),
            dict(login, device="esphome", plug="K\u00fcche (1)")),
        "esphome 2026.6, playbook": (esphome(["b", "Relay"], version="2026.6"), ESPHOME_URLS),
        "esphome 2026.6, by object id": (
            esphome(["b", "Node 1"], version="2026.6"), {"device": "esphome", "plug": "node_1"}),
        "esphome 2026.10, playbook": (esphome(["b", "Relay"]), ESPHOME_URLS),
        "esphome 2026.10, playbook, Basic": (
            esphome(["Relay"], password=PASSWORD), dict(ESPHOME_URLS, **login)),
        "esphome 2026.10, playbook, Digest": (
            esphome(["Relay"], **digest), dict(ESPHOME_URLS, **login)),
        "esphome 2026.10, SHA-256, by name": (
            esphome(["b", "Node 1"], password=PASSWORD, algorithm="SHA-256"),
            dict(login, device="esphome", switch_name="Node 1")),
        "esphome, its only switch": (esphome(["Relay"]), {"device": "esphome"}),
        "url, playbook": (switch(), HTTP_URLS),
        "url, playbook, Basic": (switch(password=PASSWORD), dict(HTTP_URLS, **login)),
        "url, Digest, SHA-256, POST": (
            switch(password=PASSWORD, algorithm="SHA-256"),
            dict(STRICT_URLS, http_method="POST", **login)),
    }


class HttpTest(AgentTest):
    def reach(self, virtual, **parameters):
        """Return the parameters that reach a virtual device, and more of them."""
        return dict(self.address(virtual), **parameters)


class Works(HttpTest):
    def test_every_device_login_and_firmware_with_every_action_from_stdin_and_argv(self):
        rounds = ((on_stdin, ("off", "status", "monitor")), (in_argv, ("on", "list-status")))
        variants = make_variants()
        for device, _ in variants.values():
            self.start(device)

        def run_all(device, parameters):
            results = []
            for way, actions in rounds:
                for action in actions:
                    results.append((action, way("fence_http", self.reach(
                        device, action=action, nodename="node", **parameters))))
            return results
        for name, results in zip(variants, at_once(
                [functools.partial(run_all, *variant) for variant in variants.values()], WORKERS)):
            device, _ = variants[name]
            with self.subTest(name):
                ended = [(action, result.code, result.err) for action, result in results]
                self.assertEqual(ended, [
                    ("off", 0, ""), ("status", 2, ""), ("monitor", 0, ""),
                    ("on", 0, ""), ("list-status", 0, "")])
                said = [result.out for _, result in results]
                self.assertEqual(said[:4], ["Success: Powered OFF\n", "Status: OFF\n", "",
                                            "Success: Powered ON\n"])
                self.assertEqual(said[4].count(",ON\n"), len(device.outlets))
                # Each change moved one contact, and always the same one.
                self.assertEqual([on for _, on in device.moved], [False, True])
                self.assertEqual(len({number for number, _ in device.moved}), 1)

    def start(self, device, *arguments, **options):
        device.moved = []
        device.on_power = lambda *move: device.moved.append(move)
        return super().start(device, *arguments, **options)

    def test_the_outlet_that_was_named_is_the_one_that_moves(self):
        for device, parameters, number in (
                (virtual.Tasmota(["POWER1", "POWER2"]),
                 dict(TASMOTA_URLS, plug="2", nodename="storage-b"), 2),
                (virtual.OpenBeken(["POWER1", "POWER2"]),
                 {"device": "tasmota", "plug": "POWER2"}, 2),
                (virtual.Esphome(["a", "b", "storage-b"]),
                 {"device": "esphome", "nodename": "storage-b", "port": "storage-b"}, 3),
                (virtual.Esphome(["Relay"]),
                 {"device": "esphome", "plug": "1"}, 1)):
            self.start(device)
            self.assert_success(on_stdin("fence_http", self.reach(
                device, action="off", **parameters)))
            self.assertEqual(device.moved, [(number, False)])

    def test_reboot_works_in_every_family(self):
        cases = ((virtual.Tasmota(), TASMOTA_URLS),
                 (virtual.Esphome(["relay"]), ESPHOME_URLS),
                 (virtual.Switch(), HTTP_URLS))
        for device, _ in cases:
            self.start(device)
        for (device, _), result in zip(cases, at_once([call(on_stdin, self.reach(
                device, action="reboot", power_timeout="8", **urls)) for device, urls in cases])):
            self.assert_success(result)
            self.assertEqual((result.out, device.moved),
                             ("Success: Rebooted\n", [(1, False), (1, True)]))

    def test_one_status_takes_one_request(self):
        for device, parameters in (
                (virtual.Tasmota(password="x"), dict(TASMOTA_URLS, password="x")),
                (virtual.Esphome(["relay"]), ESPHOME_URLS),
                (virtual.Switch(), HTTP_URLS)):
            self.start(device)
            self.assert_success(on_stdin("fence_http", dict(self.reach(
                device, action="status", **parameters), **support.PATIENT_LIMITS)))
            self.assertEqual(len(device.requests), 1)

    def test_requests_say_what_devices_need_and_nothing_else(self):
        device = self.start(virtual.Esphome(["relay"]))
        on_stdin("fence_http", self.reach(device, action="off", **ESPHOME_URLS),
                 environment={"http_proxy": "http://127.0.0.1:1"})
        host = "127.0.0.1:%d" % device.address[1]
        methods = set()
        for method, path, fields in device.requests:
            methods.add((method, path))
            self.assertEqual(fields["host"], host)
            self.assertEqual(fields["referer"], "http://%s/" % host)
            self.assertEqual(fields["connection"], "close")
            self.assertEqual(fields.get("content-length"), "0" if method == "POST" else None)
            self.assertNotIn("origin", fields)
            self.assertNotIn("authorization", fields)
        self.assertEqual(methods, {("GET", "/switch/relay?detail=all"),
                                   ("POST", "/switch/relay/turn_off")})

    def test_a_login_in_the_playbooks_tasmota_url_is_used_and_never_shown(self):
        device = self.start(virtual.Tasmota(password="hidden"))
        result = on_stdin("fence_http", self.reach(
            device, action="off", verbose_level="2", password="hidden", username="admin",
            power_off_url="/cm?user=admin&password=hidden&cmnd=Power%20OFF"))
        self.assertEqual(result.code, 0)
        self.assertNotIn("hidden", result.err)

    def test_addresses_with_ports_ipv6_and_names(self):
        support.require_localhost()
        device = self.start(virtual.Tasmota())
        six = self.start(virtual.Tasmota(referer=True), "::1")
        port, port_six = device.address[1], six.address[1]
        for address in ({"ip": "127.0.0.1:%d" % port}, {"ip": "localhost", "ipport": str(port)},
                        {"ip": "::1", "ipport": str(port_six)}, {"ip": "[::1]:%d" % port_six},
                        {"ip": "localhost:%d" % port, "inet4_only": "1"}):
            six.referer = False
            self.assert_success(on_stdin("fence_http", dict(
                TASMOTA_URLS, action="status", **address)))
        self.assertEqual(six.requests[0][2]["host"], "[::1]:%d" % port_six)
        self.assert_failure(on_stdin("fence_http", dict(
            TASMOTA_URLS, action="status", ip="nosuch.invalid", login_timeout="1")), "nosuch")

    def test_full_urls_of_the_device_work(self):
        device = self.start(virtual.Switch())
        address = "http://127.0.0.1:%d" % device.address[1]
        urls = {name: address + value if name.endswith("url") else value
                for name, value in HTTP_URLS.items()}
        self.assert_success(on_stdin("fence_http", self.reach(device, action="off", **urls)))

    def test_an_assumed_state_is_warned_of_and_works(self):
        device = self.start(virtual.Esphome(["relay"], assumed=True))
        parameters = self.reach(device, action="off", **ESPHOME_URLS)
        self.assert_success(on_stdin("fence_http", parameters))
        self.assertIn("warning: switch 'relay' has an assumed_state",
                      on_stdin("fence_http", dict(parameters, verbose="1")).err)

    def test_device_mac_lets_the_right_device_through(self):
        for device, parameters in (
                (virtual.Tasmota(), TASMOTA_URLS),
                (virtual.Esphome(["relay"], version="2026.6"), ESPHOME_URLS)):
            self.start(device)
            self.assert_success(on_stdin("fence_http", self.reach(
                device, action="off", device_mac=device.mac, **parameters)))


class Tls(HttpTest):
    def start_encrypted(self):
        """Return a virtual device behind TLS, with a certificate that nobody signed."""
        program = support.require_program("openssl")
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        pair = [os.path.join(folder.name, name) for name in ("key", "cert")]
        subprocess.check_call(
            [program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=plug",
             "-days", "2", "-keyout", pair[0], "-out", pair[1]], stderr=subprocess.DEVNULL)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if hasattr(ssl, "PROTOCOL_TLS_SERVER")
                                 else ssl.PROTOCOL_TLS)
        context.load_cert_chain(pair[1], pair[0])
        device = virtual.Tasmota()
        converse = device.converse

        def converse_encrypted(handle):
            try:
                with context.wrap_socket(handle, server_side=True) as encrypted:
                    converse(encrypted)
            except (ssl.SSLError, ConnectionError):
                pass  # the client did not trust us
        device.converse = converse_encrypted
        return self.start(device)

    def test_an_untrusted_certificate_is_refused_unless_the_caller_wants_it(self):
        # Handshakes cost a loaded machine more than the short limits of the other tests.
        parameters = dict(self.reach(self.start_encrypted(), action="off", **TASMOTA_URLS),
                          login_timeout="5", shell_timeout="10", power_timeout="30")
        refused, accepted, plain = at_once([
            call(on_stdin, parameters, ssl="1"), call(on_stdin, parameters, ssl_insecure="1"),
            call(on_stdin, dict(parameters, **support.SHORT_LIMITS))])
        self.assert_failure(refused, "certificate is not trusted", "ssl_insecure=1")
        self.assert_success(accepted)
        self.assert_failure(plain, "GET /cm?cmnd=Status%2011: ", "TLS")
        self.assertNotIn("SetOption128", plain.err)

    def test_tls_against_a_plain_server_and_the_default_port(self):
        device = self.start(virtual.Tasmota())
        self.assert_failure(on_stdin("fence_http", self.reach(
            device, action="status", ssl="1", **TASMOTA_URLS)), "no TLS")
        device.converse = lambda handle: handle.recv(4096) and handle.sendall(
            b"HTTP/1.1 400 Bad Request\r\n\r\n")
        self.assert_failure(on_stdin("fence_http", dict(self.reach(
            device, action="status", ssl="1", **TASMOTA_URLS), **support.PATIENT_LIMITS)),
            "this port answers without it (is ssl right for it?)")
        with_ssl = on_stdin("fence_http", dict(
            TASMOTA_URLS, ip="127.0.0.1", action="status", ssl_insecure="1"))
        self.assertIn("127.0.0.1:443", with_ssl.err)


class Faults(HttpTest):
    def test_faults_have_reasons_that_can_be_acted_on(self):
        for fault, words in (
                ("redirect", "redirects to 'http://192.168.4.1/'"), ("portal", "captive portal"),
                ("server_error", "HTTP status 500"), ("endless", "longer than 65536 bytes"),
                ("oversize", "claims a length of 1073741824"), ("garbage", "not complete HTTP"),
                ("wrong_type", "neither ON nor OFF"), ("wrong_key", "no POWER1"),
                ("silent", "GET /cm?cmnd=Status%2011: no complete answer"),
                ("refuse", "no connection")):
            device = self.start(virtual.Tasmota(fault=fault))
            with self.subTest(fault):
                urls = dict(TASMOTA_URLS, device="tasmota", plug="1")
                result = on_stdin("fence_http", self.reach(
                    device, action="off" if fault == "wrong_key" else "status",
                    shell_timeout="2", power_timeout="3", **urls))
                self.assert_failure(result, words)

    def test_a_search_that_broke_off_starts_again_from_its_beginning(self):
        # Two spellings are asked for; the answer to the first, or to the second, is lost.
        for answered in (0, 1):
            device = self.start(virtual.Esphome(["Relay"], version="2024"))
            device.answers, device.lose_every = 8 - answered, 9
            self.assert_success(on_stdin("fence_http", self.reach(
                device, action="status", device="esphome", plug="Relay", shell_timeout="2")))

    def test_every_third_lost_answer_fails_nothing(self):
        for device, urls in (
                (virtual.Tasmota(metered=True, always_metered=True), TASMOTA_URLS),
                (virtual.Esphome(["relay"]), ESPHOME_URLS), (virtual.Switch(), STRICT_URLS)):
            device.lose_every = 3
            self.start(device)
            self.assert_success(on_stdin("fence_http", self.reach(
                device, action="off", shell_timeout="1", power_timeout="20", **urls)))
            self.assertFalse(device.outlets[0].powered)

    def test_a_reset_right_behind_the_connection_is_no_defect(self):
        """This process is held up after connect until the device has reset the connection."""
        reset = threading.Event()
        resets = []

        class HeldUp(socket.socket):
            def getpeername(self):
                reset.wait(10)
                return super().getpeername()

        def refuse():
            for _ in range(fencetool.READ_ATTEMPTS):
                reset.clear()
                connection, _ = server.accept()
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()
                resets.append(connection)
                reset.set()
        with socket.socket() as server:
            server.settimeout(20)
            server.bind(("127.0.0.1", 0))
            server.listen(5)
            thread = threading.Thread(target=refuse)
            thread.start()
            pairs = dict(TASMOTA_URLS, action="status", ip="127.0.0.1", quiet="1",
                         **support.PATIENT_LIMITS)
            pairs["ipport"] = str(server.getsockname()[1])
            with mock.patch.object(socket, "socket", HeldUp):
                code = fencetool.run_agent(fencetool.AGENTS["fence_http"], pairs.items(),
                                           fencetool.System("test"))
            thread.join()
        self.assertEqual((code, len(resets)), (fencetool.EXIT_BAD, fencetool.READ_ATTEMPTS))


class Logins(HttpTest):
    """What a device with a Digest login is sent; it refuses a count that it has had before."""

    def run_one(self, device, action="off", **parameters):
        return on_stdin("fence_http", dict(self.reach(
            device, action=action, **dict(HTTP_URLS, username="admin", password="s3cret")),
            **dict(support.PATIENT_LIMITS, **parameters)))

    def start_switch(self, **options):
        return self.start(virtual.Switch(
            **dict({"password": "s3cret", "algorithm": "SHA-256"}, **options)))

    def counts_of(self, device):
        """Return the count that each request held, "" for a request without a login."""
        return [re.sub(".*nc=", "", fields.get("authorization", ""))
                for _, _, fields in device.requests]

    def test_one_nonce_serves_a_whole_action_with_a_count_that_rises(self):
        for action, code, requests in (("off", 0, 4), ("status", 2, 1), ("monitor", 0, 2)):
            device = self.start_switch()
            device.outlets[0].relay = action == "off"
            with self.subTest(action):
                self.assert_success(self.run_one(device, action), code)
                self.assertEqual(self.counts_of(device), [""] + [
                    "%08x" % number for number in range(1, requests + 1)])
                self.assertEqual(len(device.counts), 1)

    def test_a_password_goes_out_as_basic_only_where_it_is_asked_for_or_never_is(self):
        for options, first in (({"challenge": 'Basic realm="x"'}, ""), ({"challenge": ""}, "")):
            device = self.start_switch(algorithm="", **options)
            self.assert_success(self.run_one(device))
            sent = [fields.get("authorization", "")[:5] for _, _, fields in device.requests]
            self.assertEqual(sent, [first] + ["Basic"] * 4)
        for device in (virtual.Tasmota(password="s3cret"), virtual.OpenBeken(password="s3cret")):
            self.start(device)
            self.assert_success(on_stdin("fence_http", self.reach(
                device, action="status", password="s3cret", **TASMOTA_URLS)))
            self.assertEqual([fields["authorization"][:5] for _, _, fields in device.requests],
                             ["Basic"])

    def test_a_right_answer_to_a_stale_nonce_is_given_once_more(self):
        device = self.start_switch(stale_answers=1)
        self.assert_success(self.run_one(device))
        self.assertEqual(len(device.counts), 2)
        device = self.start_switch(stale_answers=99)
        self.assert_failure(self.run_one(device), "refuses the login", "stale=true")
        self.assertEqual(len(device.requests), 1 + fencetool.MOST_LOGIN_ANSWERS)

    def test_a_nonce_that_expires_in_the_middle_of_an_action_is_replaced(self):
        device = self.start_switch(uses=2)
        self.assert_success(self.run_one(device))
        self.assertEqual(self.counts_of(device), ["", "00000001", "00000002", "00000003",
                                                  "00000001", "00000002"])

    def test_lost_answers_make_no_count_come_twice(self):
        for options in ({"algorithm": "MD5"}, {"algorithm": "MD5", "qop": ""}):
            device = self.start_switch(lose_every=3, **options)
            self.assert_success(self.run_one(device, shell_timeout="500ms"))
            self.assertFalse(device.outlets[0].powered)

    def test_a_board_that_never_asks_and_refuses_strangers_gets_basic_the_second_time(self):
        for refusal in ((403, {}, "who are you?"), (302, {"Location": "/login"}, "")):
            device = self.start(virtual.Switch(password="s3cret"))
            device.refuse_login = lambda refusal=refusal: refusal
            self.assert_success(on_stdin("fence_http", self.reach(
                device, action="off", username="admin", password="s3cret", power_timeout="20",
                **STRICT_URLS)))
            self.assertFalse(device.outlets[0].powered)

    def test_a_busy_device_is_asked_again_without_a_login(self):
        for status in (429, 408, 503):
            device = self.start_switch(busy=[(status, {}, ""), (status, {"Retry-After": "1"}, "")])
            with self.subTest(status):
                self.assert_success(self.run_one(device, "status"))
                self.assertEqual(self.counts_of(device), ["", "", "", "00000001"])

    def test_a_command_to_a_busy_device_is_sent_again(self):
        device = self.start_switch()
        device.on_power = lambda *_: None
        obey = device.respond

        def be_busy_once(method, path, fields):
            if path == "/off" and not device.busy_before:
                device.busy_before = True
                return 429, {}, ""
            return obey(method, path, fields)
        device.busy_before, device.respond = False, be_busy_once
        self.assert_success(self.run_one(device))
        self.assertEqual(self.counts_of(device), [
            "", "00000001", "00000002", "", "00000001", "00000002", "00000003"])

    def test_a_device_that_stays_busy_says_so(self):
        device = self.start_switch(busy=[(429, {}, "Too many requests")] * 99)
        self.assert_failure(self.run_one(device, **support.SHORT_LIMITS),
                            "the device is busy", "429 'Too many requests'")

    def test_a_login_that_is_not_supported_is_named(self):
        for challenge in ('Digest realm="a", nonce="n", qop="auth", algorithm=SHA-512-256',
                          'Digest realm="a", nonce="n", qop="auth-int"', 'Bearer realm="a"'):
            device = self.start_switch()
            device.refuse_login = lambda text=challenge: (401, {"WWW-Authenticate": text}, "")
            self.assert_failure(self.run_one(device), "not supported: '%s'" % challenge)
            self.assertEqual(len(device.requests), 1)

    def test_a_refused_login_says_what_was_tried_and_what_is_asked_for(self):
        for options, words in (
                ({}, "tried: Digest SHA-256"),
                ({"algorithm": "MD5-sess"}, "tried: Digest MD5-sess"),
                ({"algorithm": ""}, "tried: Basic")):
            device = self.start_switch(**options)
            self.assert_failure(self.run_one(device, password="wr0ng"), "user 'admin'", words,
                                "it asks for: '%s" % words.split()[1])
            self.assertEqual(len(device.requests), 2)


class Replies(HttpTest):
    """Which wrong reply ends an action, and which is asked for again."""

    def answer_raw(self, *texts):
        """Start a server that answers the connections with these bytes, the last of them for ever;
        return it, with what came in `requests`."""
        device = virtual.Switch()
        waiting = list(texts)

        def converse(handle):
            device.requests.append(handle.recv(4096))
            handle.sendall(waiting.pop(0) if len(waiting) > 1 else waiting[0])
        device.converse = converse
        return self.start(device)

    def status_of(self, device, urls=STRICT_URLS, **parameters):
        return on_stdin("fence_http", dict(self.reach(
            device, action="status", **urls), **dict(support.PATIENT_LIMITS, **parameters)))

    def test_a_wrong_reply_that_comes_twice_ends_the_action(self):
        page = b"HTTP/1.1 200 OK\r\n\r\n<html><title>Main Menu</title></html>"
        cases = (
            (b"SSH-2.0-OpenSSH_9.2\r\n", STRICT_URLS, "begins with 'SSH-2.0-OpenSSH_9.2"),
            (b"\x15\x03\x01\x00\x02\x02\x46", STRICT_URLS, "this port speaks TLS"),
            (fencetool.build_kasa_frame({}), STRICT_URLS, "not complete HTTP, it begins with"),
            (b"HTTP/1.1 400 Bad\r\n\r\nThe plain HTTP request was sent to HTTPS port\r\n",
             STRICT_URLS, "status 400: 'The plain HTTP request was sent to HTTPS port'"),
            (b"HTTP/1.1 404 No\r\n\r\n{\"code\":-103}", STRICT_URLS, "404: '{\"code\":-103}'"),
            (b"HTTP/1.1 403 No\r\n\r\n", STRICT_URLS, "status 403"),
            (b"HTTP/1.1 405 No\r\n\r\n", STRICT_URLS, "status 405"),
            (b"HTTP/1.1 302 No\r\nLocation: /login\r\n\r\n", STRICT_URLS, "redirects to '/login'"),
            (page, TASMOTA_URLS, "a web page came instead of an answer: 'Main Menu'"),
            (page, ESPHOME_URLS, "a web page came instead of an answer: 'Main Menu'"))
        devices = [self.answer_raw(answer) for answer, _, _ in cases]
        results = at_once([functools.partial(self.status_of, device, urls)
                           for device, (_, urls, _) in zip(devices, cases)], WORKERS)
        for (_, _, words), device, result in zip(cases, devices, results):
            with self.subTest(words):
                self.assert_failure(result, words)
                self.assertEqual(len(device.requests), 2)

    def test_what_a_starting_device_says_once_ends_nothing(self):
        good = b'HTTP/1.1 200 OK\r\n\r\n{"outlet":1,"state":"OFF"}'
        devices = [self.answer_raw(first, good) for first in (
            b"HTTP/1.1 404 Not Found\r\n\r\n", b"HTTP/1.1 302 Found\r\nLocation: /setup\r\n\r\n",
            b"HTTP/1.1 500 Oops\r\n\r\n", b"HT", b"\0\0\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{")]
        for device, result in zip(devices, at_once([functools.partial(
                self.status_of, device) for device in devices], WORKERS)):
            self.assert_success(result, 2)
            self.assertEqual(len(device.requests), 2)

    def test_a_device_that_starts_anew_in_the_middle_of_an_action_is_waited_for(self):
        strange = ((404, {}, "Not Found"), (200, {}, "<html>starting</html>"),
                   (302, {"Location": "/setup"}, ""))
        for device, urls in ((virtual.Switch(), STRICT_URLS), (virtual.Tasmota(), TASMOTA_URLS)):
            device.busy = []
            self.start(device)
            device.on_power = lambda *_, device=device: device.busy.extend(strange)
            with self.subTest(device.dialect):
                self.assert_success(on_stdin("fence_http", dict(self.reach(
                    device, action="off", **urls), **support.PATIENT_LIMITS)))
                self.assertEqual(device.busy, [])

    def test_a_command_that_is_answered_with_a_redirect_is_judged_by_the_status(self):
        def redirect(pages, obey, method, path, fields):
            answer = obey(method, path, fields)
            return (302, {"Location": "/"}, "") if path == pages.off else answer
        for fault in ("", "ignore"):
            device = self.start(virtual.Switch(fault=fault))
            device.respond = functools.partial(redirect, device.pages, device.respond)
            result = on_stdin("fence_http", self.reach(device, action="off", **STRICT_URLS))
            if fault:
                self.assert_failure(result, "did not acknowledge OFF", "a redirect to '/'")
            else:
                self.assert_success(result)
                self.assertFalse(device.outlets[0].powered)

    def test_a_second_answer_behind_the_first_is_a_doubt(self):
        body = b'{"outlet":1,"state":"OFF"}'
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1a\r\n%s\r\n0\r\n\r\n"
        self.assert_success(self.status_of(self.answer_raw(head + body + b"\r\n")), 2)
        self.assert_success(self.status_of(self.answer_raw(chunks % body)), 2)
        for answer in (head + body + head + body.replace(b"OFF", b"ON!"), head + body + b"x",
                       chunks % body + head + body):
            self.assert_failure(self.status_of(self.answer_raw(answer)), "more came than one")

    def test_lengths_of_thousands_of_digits_are_absurd(self):
        body = b'{"outlet":1,"state":"OFF"}'
        for length in (b"9" * 5000, b"0" * 5000 + b"65537", b"1" + b"0" * 4299):
            self.assert_failure(self.status_of(self.answer_raw(
                b"HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n" % length + body)),
                "claims a length of")
        self.assert_success(self.status_of(self.answer_raw(
            b"HTTP/1.1 200 OK\r\nContent-Length: %s26 \r\n\r\n" % (b"0" * 50) + body)), 2)

    def test_a_page_without_a_length_that_was_cut_is_no_status(self):
        head, page = b"HTTP/1.0 200 OK\r\n\r\n", b"<html>P60=0,P61=1</html>"
        urls = dict(HTTP_URLS, status_on_regex="P60=1", status_off_regex="P60=0")
        self.assert_success(self.status_of(self.answer_raw(head + page), urls), 2)
        self.assert_failure(self.status_of(self.answer_raw(head + page[:12]), urls),
                            "has no length and ends in the middle of a line")

    def test_a_closed_connection_has_the_hint_of_its_family(self):
        for urls, is_tasmota in ((TASMOTA_URLS, True), (HTTP_URLS, False)):
            result = self.status_of(self.answer_raw(b""), urls)
            self.assert_failure(result, "closed the connection without an answer (", "want TLS")
            self.assertEqual("SetOption128 0" in result.err, is_tasmota)

    def test_a_closed_port_has_no_hint_of_another_family(self):
        device = self.start(virtual.Switch(fault="refuse"))
        result = on_stdin("fence_http", self.reach(device, action="status", **HTTP_URLS))
        self.assert_failure(result, "no connection: Connection refused", "address and port")
        self.assertNotIn("third-party control", result.err)


# What a machine in FIPS mode has by its policy (OpenSSL 3).
FIPS_POLICY = """\
openssl_conf = all
[all]
alg_section = policy
providers = providers
[policy]
default_properties = fips=yes
[providers]
default = default
[default]
activate = 1
"""


class Refuses(HttpTest):
    def test_a_machine_without_md5_says_so(self):
        device = self.start(virtual.Esphome(["relay"], password="right", algorithm="MD5"))
        with tempfile.NamedTemporaryFile("w") as policy:
            policy.write(FIPS_POLICY)
            policy.flush()
            environment = {"OPENSSL_CONF": policy.name}
            has_md5 = support.run([sys.executable, "-IS", "-c", "import hashlib; hashlib.md5()"],
                                  environment=environment).code == 0
            result = on_stdin("fence_http", self.reach(
                device, action="off", username="admin", password="right", **ESPHOME_URLS),
                environment=environment)
        if has_md5:  # an older OpenSSL, which does not know this policy
            self.assert_success(result)
        else:
            self.assert_failure(result, "this machine refuses the hash of the device's login")

    def test_wrong_and_missing_passwords_have_their_own_reason(self):
        cases = (
            (virtual.Tasmota(password="right"), TASMOTA_URLS, "asks for a password",
             "refuses the login"),
            (virtual.Tasmota(password="right", old=True), TASMOTA_URLS,
             "Need user", "Need user"),
            (virtual.OpenBeken(password="right"), TASMOTA_URLS,
             "asks for a password", "OpenBeken"),
            (virtual.Esphome(["relay"], password="right", algorithm="MD5"), ESPHOME_URLS,
             "asks for a password", "tried: Digest MD5"),
            (virtual.Switch(password="right"), HTTP_URLS, "asks for a password",
             "refuses the login of user 'admin'"))
        for device, urls, missing, wrong in cases:
            self.start(device)
            parameters = self.reach(device, action="off", username="admin", **urls)
            results = at_once([call(on_stdin, parameters),
                               call(on_stdin, parameters, password="wr0ng")])
            with self.subTest(wrong):
                self.assert_failure(results[0], missing)
                self.assert_failure(results[1], wrong)
            self.assertEqual(device.commands, 0)

    def test_headers_that_contradict_themselves_are_no_answer(self):
        body = b'{"outlet":1,"state":"OFF"}'
        for lines in ("Content-Length: %d\r\nContent-Length: 3" % len(body),
                      "Content-Length: %d, 3" % len(body), "Content-Length: -3",
                      "Content-Length: %d\r\nno colon" % len(body),
                      "Transfer-Encoding: chunked\r\n\r\n-5"):
            device = self.start(virtual.Switch())
            device.render = lambda *reply, lines=lines: (
                "HTTP/1.1 200 OK\r\n%s\r\n\r\n" % lines).encode("ascii") + body
            with self.subTest(lines):
                self.assert_failure(on_stdin("fence_http", self.reach(
                    device, action="status", **HTTP_URLS)))

    def test_secrets_are_nowhere_in_the_output_in_any_form(self):
        secret = "p w&s"
        forms = (secret, "p%20w%26s", "p+w%26s", "YWRtaW46cCB3JnM=", "urlsecret")
        urls = dict(TASMOTA_URLS, power_off_url="/cm?password=urlsecret&cmnd=Power%20OFF")
        calls = []
        for fault in ("", "redirect", "wrong_type", "silent"):
            device = self.start(virtual.Tasmota(password=secret, fault=fault))
            with_password = self.reach(device, action="off", username="admin", password=secret,
                                         verbose_level="2", power_timeout="1", **urls)
            calls += [call(on_stdin, with_password), call(on_stdin, with_password, ssl="1")]
        echo = self.start(virtual.Tasmota())
        echo.respond = lambda method, path, fields: (302, {"Location": path}, "")
        calls.append(call(on_stdin, self.reach(echo, action="off", password=secret, **urls)))
        echo = self.start(virtual.Switch())
        echo.respond = lambda method, path, fields: (200, {}, path + str(fields))
        calls.append(call(on_stdin, self.reach(
            echo, action="off", username="admin", password=secret, verbose_level="2",
            **dict(STRICT_URLS, status_url="/state?token=urlsecret&pw=" + "p%20w%26s"))))
        for result in at_once(calls):
            self.assertTrue(result.err)
            for form in forms:
                self.assertNotIn(form, result.err + result.out)

    def test_outlets_that_are_not_exactly_named_are_never_switched(self):
        four = ["POWER1", "POWER2", "POWER3", "POWER4"]
        tasmota = self.start(virtual.Tasmota(four))
        beken = self.start(virtual.OpenBeken())
        esphome = self.start(virtual.Esphome(["Relay", "Fan"]))
        switch = self.start(virtual.Switch())
        cases = (
            (tasmota, TASMOTA_URLS, "no outlet was named"),
            (tasmota, {"device": "tasmota", "plug": "5"}, "'5' names no outlet"),
            (tasmota, {"device": "tasmota", "plug": "n", "nodename": "n"}, "'n' names no outlet"),
            (tasmota, {"device": "tasmota", "plug": "0"}, "'0' names no outlet"),
            (beken, {"device": "tasmota", "plug": "2"}, "'2' names no outlet"),
            (esphome, {"device": "esphome"}, "no outlet was named"),
            (esphome, {"device": "esphome", "plug": "2"}, "'2' names no outlet"),
            (esphome, {"device": "esphome", "plug": "FAN"}, "relay ('Relay'), fan ('Fan')"),
            (esphome, {"device": "esphome", "plug": "n", "nodename": "n"}, "'n' names no outlet"),
            (switch, dict(HTTP_URLS, plug="3", nodename="n"), "the URLs alone say"))
        for (_, _, words), result in zip(cases, at_once([call(on_stdin, self.reach(
                device, action="off", **more)) for device, more, _ in cases])):
            with self.subTest(words):
                self.assert_failure(result, words)
        for device in (tasmota, beken, esphome, switch):
            self.assertEqual(device.commands, 0)

    def test_a_monitor_without_an_outlet_refuses_another_device_too(self):
        device = self.start(virtual.Esphome(["a", "b"], version="2024"))
        self.assert_failure(on_stdin("fence_http", self.reach(
            device, action="monitor", device="esphome", device_mac="CC:32:E5:00:00:99")),
            "another device has this address")

    def test_a_wrong_or_unknown_mac_is_refused_before_anything_is_switched(self):
        cases = (
            (virtual.Tasmota(), TASMOTA_URLS, "another device has this address"),
            (virtual.Esphome(["relay"], version="2024"), ESPHOME_URLS,
             "another device has this address"),
            (virtual.Esphome(["relay"]), ESPHOME_URLS, "does not tell its MAC"),
            (virtual.Switch(), HTTP_URLS, "does not tell its MAC"))
        for device, _, _ in cases:
            self.start(device)
        actions = ("off", "status", "monitor")
        results = at_once([call(on_stdin, self.reach(
            device, action=action, device_mac="CC:32:E5:00:00:77", **urls))
            for device, urls, _ in cases for action in actions])
        for number, result in enumerate(results):
            self.assert_failure(result, cases[number // len(actions)][2])
        for device, _, _ in cases:
            self.assertEqual(device.commands, 0)

    def test_bad_parameters_are_usage_errors_and_send_nothing(self):
        device = self.start(virtual.Switch())
        for case, words in (({"status_on_regex": "("}, "status_on_regex: '('"),
                            ({"power_off_url": "/on"}, "must differ")):
            for action in ("off", "validate-all"):
                self.assert_failure(on_stdin("fence_http", self.reach(
                    device, **dict(HTTP_URLS, action=action, **case))), words)
        self.assertEqual(device.requests, [])

    def test_a_device_that_is_locked_on_says_so(self):
        device = self.start(virtual.Tasmota())
        device.switch = lambda number, on: None
        self.assert_failure(on_stdin("fence_http", self.reach(
            device, action="off", **TASMOTA_URLS)), "did not acknowledge OFF", "PowerLock")

    def test_a_connection_without_an_answer_says_so(self):
        device = self.start(virtual.Tasmota())
        device.respond = lambda *request: None
        self.assert_failure(on_stdin("fence_http", self.reach(
            device, action="status", **TASMOTA_URLS)), "closed the connection without an answer")

    def test_a_welded_relay_is_seen_only_by_a_meter_that_measures_always(self):
        for options, policy, words in (
                ({"always_metered": True}, "auto", "still draws 43 W"),
                ({}, "require", "power_meter=require"), ({}, "auto", "")):
            device = self.start(virtual.Tasmota(metered=True, fault="welded", **options))
            result = on_stdin("fence_http", self.reach(
                device, action="off", power_timeout="2", power_meter=policy, **TASMOTA_URLS))
            if words:
                self.assert_failure(result, words)
            else:
                self.assert_success(result)

    def test_an_absurd_reading_is_a_load_and_no_silent_meter(self):
        for reading in (2e9, 10 ** 400):
            device = self.start(virtual.Tasmota(metered=True, always_metered=True))
            device.sensors = lambda reading=reading: {"ENERGY": {"Power": reading, "Voltage": 230}}
            self.assert_failure(on_stdin("fence_http", self.reach(
                device, action="off", power_timeout="2", **TASMOTA_URLS)), "still draws")

    def test_a_required_meter_that_reads_nothing_while_off_is_refused_before_anything_moves(self):
        device = self.start(virtual.Tasmota(metered=True))
        for action in ("off", "monitor"):
            self.assert_failure(on_stdin("fence_http", self.reach(
                device, action=action, power_meter="require", plug="1", **TASMOTA_URLS)),
                "power_meter=require")
        self.assertEqual(device.commands, 0)

    def test_a_meter_that_tells_no_voltage_fails_nothing_and_shows_a_load(self):
        for load, words in ((0, ""), (43, "still draws 43 W")):
            device = self.start(virtual.Tasmota(metered=True))
            device.sensors = lambda device=device, load=load: {
                "ENERGY": {"Power": load if device.commands else 43}}
            result = on_stdin("fence_http", self.reach(
                device, action="off", power_timeout="2", **TASMOTA_URLS))
            if words:
                self.assert_failure(result, words)
            else:
                self.assert_success(result)

    def test_the_load_of_before_that_a_gated_meter_shows_once_fails_nothing(self):
        # Right after OFF the firmware may report it, and then 0 W ever again.
        device = self.start(virtual.Tasmota(metered=True))
        sensors = device.sensors
        stale = [{"ENERGY": {"Power": 43, "Voltage": 230}}] * 2
        device.sensors = lambda: stale.pop() if device.commands and stale else sensors()
        self.assert_success(on_stdin("fence_http", self.reach(
            device, action="off", **TASMOTA_URLS)))
        self.assert_failure(on_stdin("fence_http", self.reach(
            device, action="monitor", power_meter="require", plug="1", **TASMOTA_URLS)),
            "power_meter=require")

    def test_two_answers_half_an_answer_and_foreign_answers_are_no_status(self):
        bodies = ('{"POWER1":"ON","POWER":"OFF"}', '{"POWER":"OFF","POWER":"ON"}',
                  '{"StatusSTS":{"POWER":"OFF"}', '{"StatusSTS":{"POWER":"OFF","POWER":"ON"}}',
                  '{"StatusSTS":{"POWER1":"OFF","POWER":"ON"}}', "OFF", "", '{"POWER":"OFF"}',
                  '{"StatusSTS":{"POWER":"OFF"},"WARNING":"x"}', '{"StatusSTS":{"power":"OFF"}}')
        calls = []
        for body in bodies:
            device = self.start(virtual.Tasmota())
            device.respond = functools.partial(
                lambda text, method, path, fields: (200, {}, text), body)
            calls.append(call(on_stdin, self.reach(
                device, action="off" if len(calls) % 2 else "status", power_timeout="1",
                **TASMOTA_URLS)))
        for result in at_once(calls, WORKERS):
            self.assert_failure(result, "GET /cm?cmnd=Status%2011: ")


class OneDevice(HttpTest):
    """Inside one process: what a name server can do between two requests."""

    def test_a_name_that_changes_its_address_changes_no_device(self):
        first = self.start(virtual.Tasmota())
        other = self.start(virtual.Tasmota(), "127.0.0.2", first.address[1])
        system = fencetool.System("test")
        answers = [("127.0.0.1", first.address[1]), ("127.0.0.2", first.address[1])]
        resolve = system.resolve

        def change_with_each_look(host, port, family, deadline):
            return [(2, answers.pop(0))] if host == "plug.lan" \
                else resolve(host, port, family, deadline)
        system.resolve = change_with_each_look
        settings = fencetool.build_settings(
            {"ip": "plug.lan", "ipport": str(first.address[1]), "device": "tasmota"}, {})
        deadline = system.deadline(10)
        outlet = fencetool.TasmotaDevice(system, settings).open(deadline)
        outlet.send(fencetool.PowerState.OFF, deadline)
        self.assertIs(outlet.read(deadline), fencetool.PowerState.OFF)
        self.assertEqual(other.requests, [])
        self.assertEqual(len(answers), 1)

    def test_a_drip_that_never_pauses_ends_by_the_deadline(self):
        device = virtual.Switch()
        stopped = threading.Event()

        def drip(handle):
            handle.recv(4096)
            handle.sendall(b"HTTP/1.1 200 OK\r\n")
            while not stopped.wait(0.0005):
                handle.sendall(b"X")
        device.converse = drip
        self.start(device)
        self.addCleanup(stopped.set)
        system = fencetool.System("test")
        settings = fencetool.build_settings(
            dict(HTTP_URLS, ip="127.0.0.1", ipport=str(device.address[1]), shell_timeout="1"), {})
        started = system.clock()
        with self.assertRaisesRegex(fencetool.Unreachable, "no complete answer"):
            fencetool.UrlDevice(system, settings).open(system.deadline(9))
        self.assertLess(system.clock() - started, 8)  # of the nine that the action has
