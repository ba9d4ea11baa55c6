"""A second reader of the sealed format, version 1, written from docs/format.md alone.

    python reader.py VECTORS.json

It opens every vector of the file (its schema, and the names of the kinds of error, are in
tests/vectors/README.md), prints a line for each check that fails, and then "N passed, M failed".
It is there to show that the page is enough to read the format; it is no library, and keeps no
secret safe in memory.
"""

import binascii
import hashlib
import hmac
import json
import sys
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

CONTEXT_MAGIC = bytes.fromhex("57584301")
SEALED_MAGIC = bytes.fromhex("c15758")
VERSION = 1
HEADER_SIZE, KEY_SIZE, TAG_SIZE = 40, 32, 16
NONCE_SIZE = {1: 12, 2: 12, 3: 24}  # by suite
KIND_MESSAGE, KIND_STREAM = 1, 2
USE_DEK_ID, USE_MESSAGE, USE_LOCAL_WRAP = 0x00, 0x01, 0x10
MAX_PLAINTEXT = 2**36 - 32
MAX_CONTEXT, MAX_PAIRS, MAX_NAME, MAX_VALUE = 8192, 64, 256, 4096
MAX_WRAPPED_KEYS, MAX_ENTRIES, MAX_KEK_ID, MAX_WRAPPED, MAX_META = 65535, 16, 512, 6144, 64
LOCAL_WRAPPED_SIZE = 4 + 24 + KEY_SIZE + TAG_SIZE


class FormatError(Exception):
    """What was read is refused; `kind` is one of KINDS."""

    def __init__(self, kind, why):
        super().__init__(f"{kind}: {why}")
        self.kind = kind


def malformed(why):
    return FormatError("malformed", why)


class Cursor:
    """Takes bytes from the front of a value, never more than there are."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, size):
        if size > len(self.data) - self.at:
            raise malformed("too short")
        self.at += size
        return self.data[self.at - size : self.at]

    def u8(self):
        return self.take(1)[0]

    def u16(self):
        return int.from_bytes(self.take(2), "little")

    def rest(self):
        return self.take(len(self.data) - self.at)

    def end(self):
        if self.at != len(self.data):
            raise malformed("bytes behind the end")


# Encoding of contexts and wrapped keys


def utf8(data, what):
    """Conventions: text is well-formed UTF-8."""
    try:
        return data.decode("utf-8", "strict")
    except UnicodeDecodeError:
        raise malformed(f"{what} is not UTF-8") from None


def check_size(size, low, high, what):
    if not low <= size <= high:
        raise malformed(f"{what}: {size} is not within {low} to {high}")
    return size


def check_pairs(pairs):
    """Encryption context: every rule but those of the layout, for pairs of bytes."""
    check_size(len(pairs), 0, MAX_PAIRS, "pairs")
    for name, value in pairs:
        check_size(len(name), 1, MAX_NAME, "name")
        check_size(len(value), 1, MAX_VALUE, "value")
        for part in (name, value):
            if any(c < "\x20" or c == "\x7f" for c in utf8(part, "context")):
                raise malformed("control character in context")
        if name.lower().startswith(b"waxseal"):
            raise malformed("reserved name")
    names = [name for name, _ in pairs]
    if any(a >= b for a, b in zip(names, names[1:])):
        raise malformed("names not strictly ascending")
    if len({name.lower() for name in names}) != len(names):  # bytes.lower() maps ASCII alone
        raise malformed("names equal but for ASCII case")


def encode_context(pairs):
    """Encryption context: `ctx` of pairs of bytes in any order."""
    pairs = sorted(pairs)
    check_pairs(pairs)
    out = CONTEXT_MAGIC + len(pairs).to_bytes(2, "little")
    for part in (part for pair in pairs for part in pair):
        out += len(part).to_bytes(2, "little") + part
    check_size(len(out), 0, MAX_CONTEXT, "context")
    return out


def decode_context(data):
    """Encryption context: the pairs of `ctx`, in its order."""
    check_size(len(data), 0, MAX_CONTEXT, "context")
    cursor = Cursor(data)
    if cursor.take(len(CONTEXT_MAGIC)) != CONTEXT_MAGIC:
        raise malformed("not a context")
    pairs = []
    for _ in range(check_size(cursor.u16(), 0, MAX_PAIRS, "pairs")):
        name = cursor.take(check_size(cursor.u16(), 1, MAX_NAME, "name"))
        value = cursor.take(check_size(cursor.u16(), 1, MAX_VALUE, "value"))
        pairs.append((name, value))
    cursor.end()
    check_pairs(pairs)
    return pairs


def encode_varint(number):
    """Wrapped keys: a variable-length integer in its shortest form."""
    return bytes([number]) if number <= 250 else b"\xfb" + number.to_bytes(2, "little")


def decode_varint(cursor):
    """Wrapped keys: a variable-length integer, of which only the shortest form is accepted."""
    first = cursor.u8()
    if first <= 250:
        return first
    if first != 251:
        raise malformed("first byte of an integer")
    number = cursor.u16()
    if number <= 250:
        raise malformed("integer not in its shortest form")
    return number


def encode_wrapped_keys(entries):
    """Wrapped keys: the encoding of decoded entries (KEK id, wrapped, meta)."""
    parts = (part for entry in entries for part in entry)
    return encode_varint(len(entries)) + b"".join(encode_varint(len(p)) + p for p in parts)


def decode_wrapped_keys(data):
    """Wrapped keys: the entries (KEK id, wrapped, meta), all of them bytes, with every check."""
    check_size(len(data), 1, MAX_WRAPPED_KEYS, "wrapped keys")
    cursor = Cursor(data)
    entries = []
    for _ in range(check_size(decode_varint(cursor), 1, MAX_ENTRIES, "entries")):
        kek_id = cursor.take(check_size(decode_varint(cursor), 1, MAX_KEK_ID, "KEK id"))
        wrapped = cursor.take(check_size(decode_varint(cursor), 1, MAX_WRAPPED, "wrapped"))
        meta = cursor.take(check_size(decode_varint(cursor), 0, MAX_META, "meta"))
        utf8(kek_id, "KEK id")
        if entries and kek_id <= entries[-1][0]:
            raise malformed("KEK ids not strictly ascending")
        entries.append((kek_id, wrapped, meta))
    cursor.end()
    return entries


# Cryptography


def derive(key, use, suite, bound):
    """Derivation: D(use, suite) with the PRK `key`, and SHA-256 of `bound` at the end of info."""
    if len(key) != KEY_SIZE:
        raise FormatError("invalid", f"key is not {KEY_SIZE} bytes long")
    info = b"waxseal.v1" + bytes([use, suite]) + hashlib.sha256(bound).digest()
    return HKDFExpand(algorithm=SHA256(), length=KEY_SIZE, info=info).derive(key)


def xaes_inner_key(key, nonce):
    """Suites: Kx of XAES-256-GCM."""
    aes = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    shifted = int.from_bytes(aes.update(bytes(16)), "big") << 1
    k1 = shifted & (2**128 - 1)
    if shifted >> 128:
        k1 ^= 0x87
    blocks = (bytes([0, number, 0x58, 0]) + nonce[:12] for number in (1, 2))
    return b"".join(
        aes.update((int.from_bytes(block, "big") ^ k1).to_bytes(16, "big")) for block in blocks
    )


def aead_open(suite, key, nonce, aad, sealed):
    """Suites: the plaintext of ciphertext and tag, or *invalid*."""
    if suite == 3:
        key, nonce = xaes_inner_key(key, nonce), nonce[12:]
    aead = ChaCha20Poly1305(key) if suite == 2 else AESGCM(key)
    try:
        return aead.decrypt(nonce, sealed, aad)
    except InvalidTag:
        raise FormatError("invalid", "tag does not match") from None


def unwrap_local(kek_id, versions, wrapped, ctx):
    """Local wrapped key: the DEK, by the secret of the KEK's version that `wrapped` names."""
    if len(wrapped) != LOCAL_WRAPPED_SIZE:
        raise FormatError("invalid", "local wrapped key is not 76 bytes long")
    cursor = Cursor(wrapped)
    version, nonce = int.from_bytes(cursor.take(4), "little"), cursor.take(24)
    if version not in versions:
        raise FormatError("invalid", f"KEK has no version {version}")
    wrap_key = derive(versions[version], USE_LOCAL_WRAP, 3, kek_id)
    return aead_open(3, wrap_key, nonce, ctx, cursor.rest())


# Messages


@dataclass
class Message:
    suite: int
    dek_id: bytes
    nonce: bytes
    wrapped_keys: bytes  # empty in the compact form
    sealed: bytes  # ciphertext and tag


def parse_message(data):
    """Common header, Message: the parts of a message, with the checks in the order of the page."""
    cursor = Cursor(data)
    if data[:3] != SEALED_MAGIC:
        raise FormatError("not-sealed", "first three bytes")
    cursor.take(3)
    if cursor.u8() != VERSION:
        raise FormatError("unsupported-version", "version")
    suite = cursor.u8()
    if suite not in NONCE_SIZE:
        raise FormatError("unsupported-suite", "suite")
    kind = cursor.u8()
    if kind == KIND_STREAM and suite == 3:  # Reserved: a stream is of suites 1 and 2 only
        raise FormatError("unsupported-suite", "suite of a stream")
    if kind != KIND_MESSAGE:
        raise FormatError("unsupported-kind", "kind")
    wrapped_size, dek_id = cursor.u16(), cursor.take(HEADER_SIZE - 8)
    nonce, wrapped_keys = cursor.take(NONCE_SIZE[suite]), cursor.take(wrapped_size)
    sealed = cursor.rest()
    check_size(len(sealed), TAG_SIZE, TAG_SIZE + MAX_PLAINTEXT, "ciphertext and tag")
    return Message(suite, dek_id, nonce, wrapped_keys, sealed)


def find_dek(entries, keks, ctx, dek_id):
    """Opening a message, step 3: a DEK that an entry holds and that has the header's id."""
    at_hand = [entry for entry in entries if entry[0] in keks]
    if not at_hand:
        raise FormatError("unknown-kek", "no entry is of a KEK at hand")
    for kek_id, wrapped, _meta in at_hand:
        try:
            dek = unwrap_local(kek_id, keks[kek_id], wrapped, ctx)
            if hmac.compare_digest(derive(dek, USE_DEK_ID, 0, ctx), dek_id):
                return dek
        except FormatError:
            pass  # another entry may pass
    raise FormatError("invalid", "no entry holds the DEK")


def open_message(data, keks, ctx, aad, handed_over):
    """Opening a message: the plaintext. `handed_over` is wrapped keys for compact ones, or None."""
    message = parse_message(data)
    encoded = message.wrapped_keys or handed_over
    if encoded is None:
        raise FormatError("missing-wrapped-keys", "compact, and none handed over")
    dek = find_dek(decode_wrapped_keys(encoded), keks, ctx, message.dek_id)
    key = derive(dek, USE_MESSAGE, message.suite, ctx)
    return aead_open(message.suite, key, message.nonce, aad, message.sealed)


# Vectors (tests/vectors/README.md)

KINDS = {"not-sealed", "unsupported-version", "unsupported-suite", "unsupported-kind", "malformed"}
KINDS |= {"missing-wrapped-keys", "unknown-kek", "invalid"}
SECTIONS = ("known_answer", "keks", "messages", "contexts", "wrapped_keys")
MESSAGE_FIELDS = ("name", "context", "aad", "sealed", "wrapped_keys", "error")
PAGE_DEK_ID = "f33d9a4834f3c7c628575d600ae8a259e42b4ffe42ac7909bba78f2b611c8615"


class Mismatch(Exception):
    """A vector that does not come out as its file says, or that its schema does not know."""


def expect(condition, why):
    if not condition:
        raise Mismatch(why)


def check_fields(value, required, optional=()):
    """The schema: every required field, and none that is unknown."""
    expect(isinstance(value, dict), "not an object")
    expect(not (missing := set(required) - set(value)), f"missing fields {sorted(missing)}")
    unknown = set(value) - set(required) - set(optional)
    expect(not unknown, f"unknown fields {sorted(unknown)}")


def no_duplicates(pairs):
    expect(len(dict(pairs)) == len(pairs), "a field twice in one object")
    return dict(pairs)


def context_bytes(context):
    """CONTEXT of the schema, encoded."""
    return encode_context([(name.encode(), value.encode()) for name, value in context])


def load_keks(keks):
    """The KEKs: versions and their secrets by the bytes of the KEK's id."""
    loaded = {}
    for kek in keks:
        check_fields(kek, ("id", "versions"))
        expect(kek["id"].startswith("local:"), f"{kek['id']} is no local KEK")
        expect(kek["id"].encode() not in loaded, f"{kek['id']} twice")
        versions = {}
        for number, secret in kek["versions"].items():
            expect(number == str(int(number)), f"version {number}")
            versions[int(number)] = binascii.unhexlify(secret)
            expect(len(versions[int(number)]) == KEY_SIZE, f"secret of version {number}")
        loaded[kek["id"].encode()] = versions
    return loaded


def check_message(vector, keks):
    check_fields(vector, MESSAGE_FIELDS, ("plaintext", "plaintext_sha256"))
    error, handed_over = vector["error"], vector["wrapped_keys"]
    expect(error is None or error in KINDS, f"unknown error {error!r}")
    answers = ("plaintext" in vector) + ("plaintext_sha256" in vector)
    expect(answers == (error is None), "one plaintext is to be there if error is null, else none")
    sealed, aad = binascii.unhexlify(vector["sealed"]), binascii.unhexlify(vector["aad"])
    handed_over = None if handed_over is None else binascii.unhexlify(handed_over)
    ctx, outcome = context_bytes(vector["context"]), None
    try:
        plaintext = open_message(sealed, keks, ctx, aad, handed_over)
    except FormatError as refused:
        outcome = refused
    expect(getattr(outcome, "kind", None) == error, f"expected {error}, got {outcome}")
    if error is None and "plaintext" in vector:
        expect(plaintext == binascii.unhexlify(vector["plaintext"]), "other plaintext")
    elif error is None:
        digest = hashlib.sha256(plaintext).hexdigest()
        expect(digest == vector["plaintext_sha256"].lower(), "other plaintext")


def check_encoding(vector, decode, encode):
    """A vector of `contexts` or `wrapped_keys`."""
    check_fields(vector, ("bytes", "why", "valid"))
    expect(isinstance(vector["valid"], bool), "valid is no boolean")
    data = binascii.unhexlify(vector["bytes"])
    try:
        decoded = decode(data)
    except FormatError as refused:
        expect(not vector["valid"], f"refused: {refused}")
    else:
        expect(vector["valid"], "was not refused")
        expect(encode(decoded) == data, "encodes to other bytes")


def check_hex(found, expected):
    expect(found == binascii.unhexlify(expected), f"{found.hex()} is not {expected}")


class Run:
    """Counts the checks, and prints those that fail."""

    def __init__(self):
        self.passed = self.failed = 0

    def check(self, name, test, *args):
        """What the test returns, or None if it failed: any exception is a failure."""
        try:
            result = test(*args)
        except Exception as error:
            known = isinstance(error, (Mismatch, FormatError))
            print(f"{name}: {error if known else repr(error)}")
            self.failed += 1
            return None
        self.passed += 1
        return result

    def known_answer(self, answer):
        self.check("known_answer", check_fields, answer,
                   ("dek", "context", "context_bytes", "dek_id", "message_keys"))
        dek, ctx = binascii.unhexlify(answer["dek"]), context_bytes(answer["context"])
        keys = answer["message_keys"]
        self.check("known_answer: message_keys", check_fields, keys, ("1", "2", "3"))
        found = [("context_bytes", ctx, answer["context_bytes"]),
                 ("dek_id", derive(dek, USE_DEK_ID, 0, ctx), answer["dek_id"])]
        for suite in NONCE_SIZE:
            key = derive(dek, USE_MESSAGE, suite, ctx)
            found.append((f"message key {suite}", key, keys.get(str(suite), "")))
        for name, value, expected in found:
            self.check(f"known_answer: {name}", check_hex, value, expected)

    def vectors(self, doc):
        page_ctx = encode_context([(b"tenant", b"alice")])
        page_id = derive(bytes(range(32)), USE_DEK_ID, 0, page_ctx)
        self.check("page: DEK id", check_hex, page_id, PAGE_DEK_ID)
        self.check("file", check_fields, doc, ("format", *SECTIONS))
        self.check("file: format", expect, doc.get("format") == 1, "is not 1")
        for section in SECTIONS:
            self.check(f"file: {section}", expect, doc.get(section), "missing or empty")
        if "known_answer" in doc:
            self.known_answer(doc["known_answer"])
        keks = self.check("keks", load_keks, doc.get("keks", ())) or {}
        for number, vector in enumerate(doc.get("messages", ())):
            name = vector.get("name", "") if isinstance(vector, dict) else ""
            self.check(f"messages[{number}] {name}", check_message, vector, keks)
        codecs = {"contexts": (decode_context, encode_context),
                  "wrapped_keys": (decode_wrapped_keys, encode_wrapped_keys)}
        for section, codec in codecs.items():
            for number, vector in enumerate(doc.get(section, ())):
                why = vector.get("why", "") if isinstance(vector, dict) else ""
                self.check(f"{section}[{number}] {why}", check_encoding, vector, *codec)


def load(path):
    with open(path, encoding="utf-8") as file:
        doc = json.load(file, object_pairs_hook=no_duplicates)
    expect(isinstance(doc, dict), "not an object")
    return doc


def main(arguments):
    if len(arguments) != 1:
        print("usage: python reader.py VECTORS.json", file=sys.stderr)
        return 2
    run = Run()
    doc = run.check("file: JSON", load, arguments[0])
    if doc is not None:
        run.check("file: read to its end", run.vectors, doc)
    print(f"{run.passed} passed, {run.failed} failed")
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
