"""KLAP's cryptography and codec, with vectors published or computed by other implementations."""
import unittest

import fencetool
from fencetool import ProtocolError

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
