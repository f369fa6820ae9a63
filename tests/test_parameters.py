"""One row per parameter; stdin, argv, settings follow from it."""
import unittest

import fencetool
from fencetool import UsageError

AGENT = fencetool.AGENTS["fence_kasa"]
ROWS = AGENT.params


def settings(**values):
    return fencetool.build_settings(values, AGENT.defaults)


class Stdin(unittest.TestCase):
    def test_values_stay_as_they_are(self):
        text = ("# comment\n\n  # another\nip=10.0.0.1\npassword= a=b#c\"d'e \\  \n"
                "power-timeout=7\r\nunknown=x")
        self.assertEqual(fencetool.parse_stdin(text), [
            ("ip", "10.0.0.1"), ("password", " a=b#c\"d'e \\  "), ("power_timeout", "7"),
            ("unknown", "x")])

    def test_quotes_belong_to_the_value(self):
        self.assertEqual(fencetool.parse_stdin('status_on_regex="state":"ON"\n'),
                         [("status_on_regex", '"state":"ON"')])

    def test_a_line_without_equals_is_an_error(self):
        with self.assertRaises(UsageError):
            fencetool.parse_stdin("action off\n")

    def test_what_may_be_a_part_of_a_password_is_not_shown(self):
        with self.assertRaises(UsageError) as on_stdin:
            fencetool.parse_stdin("password=my\nhunter2\n")
        with self.assertRaises(UsageError) as in_argv:
            fencetool.parse_argv(["-p", "my", "hunter2"], ROWS)
        self.assertIn("line 2 ", str(on_stdin.exception))
        self.assertIn("argument 3 ", str(in_argv.exception))
        self.assertNotIn("hunter2", str(on_stdin.exception) + str(in_argv.exception))


class Argv(unittest.TestCase):
    def parse(self, *arguments):
        return fencetool.parse_argv(list(arguments), ROWS)

    def test_letters_long_options_abbreviations_and_old_names(self):
        expected = [("ip", "10.0.0.1"), ("action", "status")]
        for arguments in (("-a", "10.0.0.1", "-o", "status"), ("-a10.0.0.1", "-ostatus"),
                          ("--ip=10.0.0.1", "--action", "status"),
                          ("--ipaddr=10.0.0.1", "--act=status")):
            with self.subTest(arguments):
                self.assertEqual(self.parse(*arguments), expected)

    def test_grouped_and_repeated_v_raise_the_level(self):
        self.assertIn(("verbose_level", "2"), self.parse("-vv"))
        self.assertIn(("verbose_level", "3"), self.parse("-v", "--verbose", "-v"))

    def test_unknown_options_and_stray_words_are_usage_errors(self):
        for arguments in (["--nosuch"], ["off"], ["-Z"], ["-a"], ["--quiet=1"], ["getconfignames"]):
            with self.subTest(arguments), self.assertRaises(UsageError):
                self.parse(*arguments)


class Collecting(unittest.TestCase):
    def collect(self, *pairs):
        return fencetool.collect_values(list(pairs), ROWS)

    def test_old_names_are_the_new_ones(self):
        values, unknown = self.collect(("ipaddr", "h"), ("login", "u"), ("passwd", "p"),
                                       ("passwd_script", "s"), ("port", "2"), ("option", "off"),
                                       ("debug", "f"), ("nosuch", "x"))
        self.assertEqual(values, {"ip": "h", "username": "u", "password": "p", "plug": "2",
                                  "password_script": "s", "action": "off", "debug_file": "f"})
        self.assertEqual(unknown, ["nosuch"])

    def test_an_empty_value_is_not_given(self):
        self.assertEqual(self.collect(("ip", ""), ("ipaddr", "h")), ({"ip": "h"}, []))

    def test_the_label_yields_to_a_configured_outlet_whatever_the_order(self):
        pairs = [("nodename", "storage-b"), ("port", "storage-b"), ("plug", "3")]
        self.assertEqual(self.collect(*pairs)[0]["plug"], "3")
        self.assertEqual(self.collect(*reversed(pairs))[0]["plug"], "3")

    def test_two_values_for_one_parameter_are_never_guessed(self):
        for pairs in ((("ip", "a"), ("ipaddr", "b")), (("action", "on"), ("action", "off")),
                      (("plug", "1"), ("port", "2"), ("nodename", "n"))):
            with self.subTest(pairs), self.assertRaises(UsageError):
                self.collect(*pairs)

    def test_two_passwords_are_refused_without_being_shown(self):
        for pairs in ((("password", "hush1"), ("passwd", "hush2")),
                      (("status_url", "/s?password=hush1"), ("status_url", "/s?password=hush2"))):
            with self.subTest(pairs), self.assertRaisesRegex(UsageError, "twice") as caught:
                fencetool.collect_values(
                    pairs, fencetool.AGENTS["fence_http"].params)
            self.assertNotIn("hush", str(caught.exception))


class Settings(unittest.TestCase):
    def test_defaults_are_those_of_the_rows(self):
        found = settings(ip="10.0.0.1")
        self.assertEqual((found.ipport, found.login_timeout, found.shell_timeout,
                          found.power_timeout, found.delay, found.stonith_status_sleep,
                          found.retry_on, found.power_meter, found.quiet, found.separator),
                         (9999, 5, 10, 30, 0, 1, 1, "auto", False, ","))

    def test_an_address_may_carry_its_port(self):
        for text, expected in (("10.0.0.5", ("10.0.0.5", 9999)), ("10.0.0.5:80", ("10.0.0.5", 80)),
                               ("::1", ("::1", 9999)), ("[::1]:80", ("::1", 80)),
                               ("[fe80::1%eth0]", ("fe80::1%eth0", 9999)),
                               ("plug-b.lan:80", ("plug-b.lan", 80))):
            with self.subTest(text):
                found = settings(ip=text)
                self.assertEqual((found.ip, found.ipport), expected)

    def test_bad_values_name_their_parameter(self):
        for name, value in (("ip", "10.0.0.1 "), ("ip", "a b"), ("ip", "10.0.0.1:x"),
                            ("ip", "http://10.0.0.1"), ("ip", "-x;reboot"), ("ipport", "abc"),
                            ("power_timeout", "soon"), ("power_timeout", "0"),
                            ("power_meter", "maybe"), ("device_mac", "CC:32"), ("quiet", "maybe"),
                            ("retry_on", "1.5"), ("stonith_status_sleep", "100ms"),
                            ("power_wait", "30"), ("stonith_status_sleep", "30"),
                            ("delay", "9" * 25), ("ipport", "9" * 5000), ("ip", "10.20.20"),
                            ("ip", "010.20.20.202"), ("ip", "1"), ("ip", "0x7f000001"),
                            ("ip", "10.20.20.0x1"), ("ip", "fe80::1%ü")):
            with self.subTest(name + "=" + value), self.assertRaises(UsageError) as caught:
                settings(**dict({"ip": "10.0.0.1"}, **{name: value}))
            self.assertIn(name, str(caught.exception))

    def test_two_ports_are_never_guessed(self):
        self.assertEqual(settings(ip="10.0.0.1:80", ipport="80").ipport, 80)
        with self.assertRaises(UsageError):
            settings(ip="10.0.0.1:80", ipport="9999")

    def test_a_port_outside_the_range_is_refused(self):
        for port in ("0", "65536", "-1"):
            with self.subTest(port), self.assertRaises(UsageError):
                settings(ip="10.0.0.1", ipport=port)

    def test_ipv4_only_and_ipv6_only_exclude_each_other(self):
        with self.assertRaises(UsageError):
            settings(ip="10.0.0.1", inet4_only="1", inet6_only="1")

    def test_every_agent_names_only_rows_that_exist(self):
        for agent in fencetool.AGENTS.values():
            names = {row.name for row in agent.params}
            self.assertEqual(set(agent.params) - set(
                fencetool.PARAMS + fencetool.FOREIGN_PARAMS), set())
            self.assertEqual(set(agent.defaults) - names, set())
            self.assertEqual(set(agent.required) - names, set())

    def test_letters_and_names_are_unique_among_the_rows_of_an_agent(self):
        for agent in fencetool.AGENTS.values():
            rows = agent.params
            letters = [row.letter for row in rows if row.letter]
            names = [name for row in rows for name in (row.name,) + row.aliases]
            self.assertEqual(len(letters), len(set(letters)))
            self.assertEqual(len(names), len(set(names)))
