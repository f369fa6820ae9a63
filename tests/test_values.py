"""Conversions between the words of the field and text."""
import json
import unittest

import fencetool
from fencetool import Outlet, PowerState, Refused, UsageError


class Conversions(unittest.TestCase):
    def test_seconds_take_units(self):
        for text, seconds in (("5", 5), ("5s", 5), ("1500ms", 1.5), ("1m", 60), ("1min", 60),
                              ("0", 0), ("2.5", 2.5), (" 7 ", 7)):
            with self.subTest(text):
                self.assertEqual(fencetool.parse_seconds(text), seconds)

    def test_anything_else_is_no_time(self):
        for text in ("", "abc", "-1", "5 s", "1h", "1e3", "nan", "inf", "٥", "5\n5",
                     "9999999m"):
            with self.subTest(text), self.assertRaises(UsageError):
                fencetool.parse_seconds(text)

    def test_booleans_are_the_words_of_fence_agents_and_no_others(self):
        for word in ("1", "yes", "ON", "True"):
            self.assertIs(fencetool.parse_boolean(word), True)
        for word in ("0", "no", "Off", "FALSE"):
            self.assertIs(fencetool.parse_boolean(word), False)
        for word in ("", "2", "y", "enabled"):
            with self.subTest(word), self.assertRaises(UsageError):
                fencetool.parse_boolean(word)

    def test_a_mac_address_is_the_same_with_any_separators(self):
        for text in ("CC:32:E5:00:00:01", "cc-32-e5-00-00-01", "CC32E5000001", "cc32.e500.0001"):
            self.assertEqual(fencetool.parse_mac(text), "cc32e5000001")
        for text in ("", "CC:32:E5:00:00", "CC:32:E5:00:00:0G", "CC:32:E5:00:00:01:02"):
            with self.subTest(text), self.assertRaises(UsageError):
                fencetool.parse_mac(text)

    def test_foreign_text_becomes_one_printable_line(self):
        self.assertEqual(fencetool.quote("a\nb\x1b[31m\0"), "'a\\nb\\x1b[31m\\x00'")
        self.assertEqual(len(fencetool.quote("x" * 1000)), 85)

    def test_secrets_are_redacted_the_longest_first(self):
        self.assertEqual(fencetool.redact("pw=secret2 secret", {"secret", "secret2"}),
                         "pw=*** ***")

    def test_a_secret_of_one_letter_does_not_show_itself_by_its_gaps(self):
        self.assertEqual(fencetool.redact("status", {"s"}), "status")

    def test_a_name_twice_with_two_values_is_an_error_even_if_python_calls_them_equal(self):
        for text in ('{"a": 0, "a": 1}', '{"a": 0, "a": false}', '{"a": {"b": 1, "b": 2}}'):
            with self.subTest(text), self.assertRaises(fencetool.ProtocolError):
                fencetool.parse_json_object(text)
        self.assertEqual(fencetool.parse_json_object('{"a": 1, "a": 1}'), {"a": 1})

    def test_names_that_differ_in_case_alone_and_have_two_values_are_an_error(self):
        for text in ('{"relay_state": 0, "RELAY_STATE": 1}', '{"Power": "ON", "POWER": "OFF"}',
                     '{"a": [{"b": 0, "B": false}]}', '{"a": 0, "A": 0, "a": 1}'):
            with self.subTest(text), self.assertRaises(fencetool.ProtocolError):
                fencetool.parse_json_object(text)
        for text in ('{"a": 1, "A": 1}', '{"POWER": "ON", "b": {"Power": 43}}'):
            self.assertEqual(fencetool.parse_json_object(text), json.loads(text))

    def test_what_is_no_json_object_is_a_protocol_error(self):
        for text in ("", "[]", "null", "1", "{", '{"a": nan}', "NaN", "[" * 100000):
            with self.subTest(text[:20]), self.assertRaises(fencetool.ProtocolError):
                fencetool.parse_json_object(text)


def strip(*aliases):
    return [Outlet(number, alias, ("id0%d" % (number - 1), "0%d" % (number - 1)), PowerState.ON)
            for number, alias in enumerate(aliases, 1)]


class OutletSelection(unittest.TestCase):
    def number(self, outlets, wanted, label=""):
        return fencetool.select_outlet(outlets, wanted, label).number

    def test_one_outlet_needs_no_name_and_takes_the_label(self):
        for wanted, label in (("", ""), ("storage-b", "storage-b"), ("1", "storage-b"),
                              ("plug", "storage-b"), ("id00", "x")):
            with self.subTest(wanted):
                self.assertEqual(self.number(strip("plug"), wanted, label), 1)

    def test_one_outlet_refuses_any_other_name(self):
        for wanted in ("2", "0", "other", "01", "Plug"):
            with self.subTest(wanted), self.assertRaises(Refused):
                self.number(strip("plug"), wanted, "storage-b")

    def test_of_several_outlets_exactly_one_must_be_named(self):
        outlets = strip("a", "b", "storage-b")
        for wanted, number in (("2", 2), ("b", 2), ("id01", 2), ("id02", 3), ("ID02", 3)):
            with self.subTest(wanted):
                self.assertEqual(self.number(outlets, wanted, "storage-b"), number)
        for wanted in ("", "4", "0", "c", "storage-a"):
            with self.subTest(wanted), self.assertRaises(Refused):
                self.number(outlets, wanted, "storage-a")

    def test_the_label_selects_only_an_outlet_that_carries_it(self):
        self.assertEqual(self.number(strip("a", "storage-b"), "storage-b", "storage-b"), 2)
        with self.assertRaises(Refused):
            self.number(strip("a", "b"), "2", "2")

    def test_two_outlets_of_one_name_are_never_guessed(self):
        for label in ("", "same", "other"):
            with self.subTest(label), self.assertRaises(Refused) as caught:
                self.number(strip("same", "same", "b"), "same", label)
            self.assertIn("'same' names 2 outlets", str(caught.exception))

    def test_a_number_with_a_zero_in_front_names_no_outlet(self):
        for wanted, number in (("01", "1"), ("00", "0"), ("002", "2"), ("09", "9")):
            for outlets in (strip("a", "b", "c"), strip("a")):
                with self.subTest(wanted), self.assertRaises(Refused) as caught:
                    self.number(outlets, wanted)
                self.assertIn("(which would be %s)" % number, str(caught.exception))
        self.assertEqual(self.number([Outlet("01", "a", (), PowerState.ON)], "01"), "01")
        with self.assertRaises(Refused):
            self.number(strip("01", "b"), "01")

    def test_an_alias_that_is_the_number_of_another_outlet_is_never_guessed(self):
        with self.assertRaises(Refused):
            self.number(strip("2", "b"), "2")
        with self.assertRaises(Refused):
            self.number(strip("3", "b"), "3")
        self.assertEqual(self.number(strip("a", "2"), "2"), 2)


def doubt(watts, policy, obstacle=""):
    return fencetool.doubt_about_meter(fencetool.MeterReading(watts, obstacle), policy)


class MeterDoubts(unittest.TestCase):
    def test_a_load_is_a_doubt_under_every_policy(self):
        for policy in ("auto", "require"):
            self.assertIn("still draws 43 W", doubt(43.2, policy))
            self.assertTrue(doubt(-43.2, policy))
            self.assertTrue(doubt(2.0, policy))
            self.assertFalse(doubt(0.93, policy))

    def test_no_reading_is_a_doubt_only_when_one_is_required(self):
        for watts in (None, 0.0):
            self.assertFalse(doubt(watts, "auto", "it is gated"))
            self.assertIn("it is gated", doubt(watts, "require", "it is gated"))

    def test_a_load_that_is_shown_is_a_load_whatever_the_settings_say(self):
        for policy in ("auto", "require"):
            self.assertIn("still draws 43 W", doubt(43.2, policy, "it is gated"))

    def test_only_a_reading_ends_the_doubt_about_a_load(self):
        for watts, obstacle, remembered in (
                (0.0, "", ""), (0.0, "it is gated", ""), (None, "no meter", "a load")):
            reading = fencetool.MeterReading(watts, obstacle)
            self.assertEqual(fencetool.remember_load("a load", reading, ""), remembered)
        reading = fencetool.MeterReading(43.0, "")
        self.assertEqual(fencetool.remember_load("", reading, "new load"), "new load")


class Doubts(unittest.TestCase):
    def test_an_error_without_a_text_is_still_a_doubt(self):
        for kind in (fencetool.FenceError, fencetool.Unreachable, fencetool.ProtocolError):
            self.assertTrue(str(kind("")))

    def test_what_was_read_when_the_time_was_up_is_a_doubt(self):
        self.assertEqual(fencetool.doubt_about_time(0.01), "")
        self.assertTrue(fencetool.doubt_about_time(0.0))

    def test_the_only_outlet_of_a_list_that_may_go_on_is_not_taken_for_the_only_one(self):
        only = strip("server")
        for wanted in ("", "node"):
            self.assertEqual(fencetool.select_outlet(only, wanted, "node"), only[0])
            with self.assertRaises(Refused):
                fencetool.select_outlet(only, wanted, "node", "the list broke off")
        self.assertEqual(fencetool.select_outlet(only, "server", "node", "cut"), only[0])
