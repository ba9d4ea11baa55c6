"""A second reader of the sealed format, version 1, written from docs/format.md alone.

It is there to show that the page is enough to read the format; it is no library, and keeps no
secret safe in memory. vectors.py opens the committed vectors with it.
"""

import hashlib
import hmac
import re
from dataclasses import dataclass
from datetime import datetime

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

CONTEXT_MAGIC = bytes.fromhex("57584301")
DOMAIN = b"waxseal:domain"
SEALED_MAGIC = bytes.fromhex("c15758")
VERSION = 1
HEADER_SIZE, KEY_SIZE, TAG_SIZE = 40, 32, 16
NONCE_SIZE = {1: 12, 2: 12, 3: 24}  # by suite
KIND_MESSAGE, KIND_STREAM = 1, 2
USE_DEK_ID, USE_MESSAGE, USE_STREAM_ROOT = 0, 1, 2
USE_LOCAL_WRAP, USE_BRANCH_WRAP, USE_BRANCH_DEK = 0x10, 0x11, 0x12
STREAM_AEAD = {1: b"AEAD_AES_256_GCM", 2: b"AEAD_CHACHA20_POLY1305"}  # by suite
MAX_PLAINTEXT = 2**36 - 32
MAX_CONTEXT, MAX_PAIRS, MAX_NAME, MAX_VALUE = 8192, 64, 256, 4096
MAX_WRAPPED_KEYS, MAX_ENTRIES, MAX_KEK_ID, MAX_WRAPPED, MAX_META = 65535, 16, 512, 6144, 64
LOCAL_WRAPPED_SIZE = 4 + 24 + KEY_SIZE + TAG_SIZE
ROW_MAGIC, ROW_FIXED, LIVE, TOMBSTONE = bytes.fromhex("c1574b"), 42, 0, 1
KIND_DEK, KIND_BRANCH, KIND_INDEX = 0, 1, 2
DERIVED, WRAPPED, SELF_CONTAINED, REFERENCE_SIZE, SALT_SIZE = 1, 2, 3, 16, 16


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


def is_reserved(name):
    return name.lower().startswith(b"waxseal")


def check_pairs(pairs, reserved):
    """Encryption context: every rule but those of the layout, for pairs of bytes. `reserved` says
    whether reserved names are allowed."""
    check_size(len(pairs), 0, MAX_PAIRS, "pairs")
    for name, value in pairs:
        check_size(len(name), 1, MAX_NAME, "name")
        check_size(len(value), 1, MAX_VALUE, "value")
        for part in (name, value):
            if any(c < "\x20" or c == "\x7f" for c in utf8(part, "context")):
                raise malformed("control character in context")
        if is_reserved(name) and not reserved:
            raise malformed("reserved name")
    names = [name for name, _ in pairs]
    if any(a >= b for a, b in zip(names, names[1:])):
        raise malformed("names not strictly ascending")
    if len({name.lower() for name in names}) != len(names):  # bytes.lower() maps ASCII alone
        raise malformed("names equal but for ASCII case")


def encode_context(pairs, reserved=False, domain=None):
    """Encryption context: `ctx` of pairs of bytes in any order, and of a data domain."""
    pairs = sorted(pairs)
    check_pairs(pairs, reserved)
    if domain is not None:
        pairs = sorted([*pairs, (DOMAIN, domain)])
        check_pairs(pairs, reserved=True)
    out = CONTEXT_MAGIC + len(pairs).to_bytes(2, "little")
    for part in (part for pair in pairs for part in pair):
        out += len(part).to_bytes(2, "little") + part
    check_size(len(out), 0, MAX_CONTEXT, "context")
    return out


def decode_context(data, reserved=False):
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
    check_pairs(pairs, reserved)
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


# Encoding of key rows and entries of branch keys


@dataclass
class Row:
    state: int
    kind: int
    id: bytes
    ctx: bytes  # empty in a tombstone, as the wrapped keys are
    wrapped_keys: bytes


def decode_row(data):
    """Key row: the row, with the checks in the order of the page."""
    cursor = Cursor(data)
    if cursor.take(len(ROW_MAGIC)) != ROW_MAGIC:
        raise malformed("not a key row")
    if cursor.u8() != VERSION:
        raise FormatError("unsupported-version", "version of a row")
    state, kind = cursor.u8(), cursor.u8()
    if kind not in (KIND_DEK, KIND_BRANCH, KIND_INDEX):
        raise FormatError("unsupported-kind", "kind of a row")
    keys_size, key_id, ctx_size = cursor.u16(), cursor.take(32), cursor.u16()
    row = Row(state, kind, key_id, cursor.take(ctx_size), cursor.take(keys_size))
    cursor.end()
    if state == LIVE:
        decode_context(row.ctx, reserved=True)
        decode_wrapped_keys(row.wrapped_keys)
    elif state != TOMBSTONE or row.ctx or row.wrapped_keys:
        raise malformed("state of a row")
    return row


def encode_row(row):
    """Key row: the encoding of a decoded row."""
    keys_size, ctx_size = (len(x).to_bytes(2, "little") for x in (row.wrapped_keys, row.ctx))
    head = ROW_MAGIC + bytes([VERSION, row.state, row.kind])
    return head + keys_size + row.id + ctx_size + row.ctx + row.wrapped_keys


@dataclass
class Entry:
    form: int
    row: bytes | None  # in the self-contained form
    reference: bytes
    rest: bytes  # salt; or nonce, encrypted DEK and tag


def decode_entry(data):
    """Entry of a branch key: the entry, with every check."""
    check_size(len(data), 1, MAX_WRAPPED, "entry")
    cursor = Cursor(data)
    form, row = cursor.u8(), None
    if form == SELF_CONTAINED:
        form, row = cursor.u8(), cursor.take(cursor.u16())
    if form not in (DERIVED, WRAPPED):
        raise malformed("form of an entry")
    reference = cursor.take(REFERENCE_SIZE)
    rest = cursor.take(SALT_SIZE if form == DERIVED else 24 + KEY_SIZE + TAG_SIZE)
    cursor.end()
    if row is not None:
        check_row(decode_row(row), KIND_BRANCH, reference)
    return Entry(form, row, reference, rest)


def encode_entry(entry):
    """Entry of a branch key: the encoding of a decoded entry."""
    head = bytes([entry.form])
    if entry.row is not None:
        head = bytes([SELF_CONTAINED]) + head + len(entry.row).to_bytes(2, "little") + entry.row
    return head + entry.reference + entry.rest


def check_row(row, kind, asked_for):
    """What a row proves: 1 to 3."""
    if row.state != LIVE or row.kind != kind or not row.id.startswith(asked_for):
        raise FormatError("invalid", "row is a tombstone, or of another kind or id")


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


def is_period(value):
    """Branch keys: the form of `waxseal:period`."""
    if not re.fullmatch(rb"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z", value):
        return False
    try:
        return datetime.strptime(value.decode(), "%Y-%m-%dT%H:%M:%SZ").year >= 1970
    except ValueError:
        return False


def unwrap_branch(name, names, store, keks, wrapped, ctx):
    """Reading an entry: the DEK. `names` are those of the branch's pairs; `store` gives rows by
    reference; `keks` unwrap branch keys."""
    entry = decode_entry(wrapped)
    stored = store.get(entry.reference)
    if entry.row is not None and stored is not None and decode_row(stored).state == TOMBSTONE:
        raise FormatError("invalid", "branch key was erased")
    found = entry.row if entry.row is not None else stored
    if found is None:
        raise FormatError("invalid", "no row")
    row = decode_row(found)
    check_row(row, KIND_BRANCH, entry.reference)
    pairs = dict(decode_context(row.ctx, reserved=True))
    if not is_period(pairs.pop(b"waxseal:period", b"")):
        raise FormatError("invalid", "period of the branch key")
    of_caller = dict(decode_context(ctx, reserved=True))
    domain = {DOMAIN: of_caller[DOMAIN]} if DOMAIN in of_caller else {}
    if pairs != {n: of_caller.get(n) for n in names} | {b"waxseal:branch": name} | domain:
        raise FormatError("invalid", "row of another branch")
    roots = [e for e in decode_wrapped_keys(row.wrapped_keys) if not e[0].startswith(b"branch:")]
    branch_key = find_dek(roots, keks, row.ctx, row.id)
    if entry.form == DERIVED:
        return derive(branch_key, USE_BRANCH_DEK, 0, ctx + entry.rest)
    wrap_key = derive(branch_key, USE_BRANCH_WRAP, 3, row.ctx)
    return aead_open(3, wrap_key, entry.rest[:24], ctx, entry.rest[24:])


# Messages


@dataclass
class Message:
    suite: int
    dek_id: bytes
    nonce: bytes
    wrapped_keys: bytes  # empty in the compact form
    sealed: bytes  # ciphertext and tag


def parse_header(cursor):
    """Common header: suite, kind, W and DEK id, with the checks in the order of the page."""
    if cursor.data[:3] != SEALED_MAGIC:
        raise FormatError("not-sealed", "first three bytes")
    cursor.take(3)
    if cursor.u8() != VERSION:
        raise FormatError("unsupported-version", "version")
    suite = cursor.u8()
    if suite not in NONCE_SIZE:
        raise FormatError("unsupported-suite", "suite")
    kind = cursor.u8()
    if kind not in (KIND_MESSAGE, KIND_STREAM):
        raise FormatError("unsupported-kind", "kind")
    if kind == KIND_STREAM and suite == 3:
        raise FormatError("unsupported-suite", "suite of a stream")
    return suite, kind, cursor.u16(), cursor.take(HEADER_SIZE - 8)


def parse_message(data):
    """Message: the parts of a message."""
    cursor = Cursor(data)
    suite, kind, wrapped_size, dek_id = parse_header(cursor)
    if kind != KIND_MESSAGE:
        raise FormatError("unsupported-kind", "a stream")
    nonce, wrapped_keys = cursor.take(NONCE_SIZE[suite]), cursor.take(wrapped_size)
    sealed = cursor.rest()
    check_size(len(sealed), TAG_SIZE, TAG_SIZE + MAX_PLAINTEXT, "ciphertext and tag")
    return Message(suite, dek_id, nonce, wrapped_keys, sealed)


def find_dek(entries, keks, ctx, dek_id):
    """Decrypting a message, step 3: a DEK that an entry holds and that has the header's id. Or a
    branch key, and the row's id. `keks` are functions of `wrapped` and `ctx`, by KEK id."""
    known = [entry for entry in entries if entry[0] in keks]
    if not known:
        raise FormatError("unknown-kek", "no entry is of a KEK that the reader has")
    for kek_id, wrapped, _meta in known:
        try:
            dek = keks[kek_id](wrapped, ctx)
            if hmac.compare_digest(derive(dek, USE_DEK_ID, 0, ctx), dek_id):
                return dek
        except FormatError:
            pass  # another entry may pass
    raise FormatError("invalid", "no entry holds the DEK")


def dek_of(sealed, keks, ctx, handed_over):
    """Decrypting a message, steps 2 and 3: the DEK of a message or of the head of a stream."""
    encoded = sealed.wrapped_keys or handed_over
    if encoded is None:
        raise FormatError("missing-wrapped-keys", "compact, and none handed over")
    return find_dek(decode_wrapped_keys(encoded), keks, ctx, sealed.dek_id)


def open_message(data, keks, ctx, aad, handed_over):
    """Decrypting a message: the plaintext. `handed_over`: a compact one's wrapped keys or None."""
    message = parse_message(data)
    dek = dek_of(message, keks, ctx, handed_over)
    key = derive(dek, USE_MESSAGE, message.suite, ctx)
    return aead_open(message.suite, key, message.nonce, aad, message.sealed)


# Streams


@dataclass
class Head:
    suite: int
    dek_id: bytes
    chunk_log2: int
    wrapped_keys: bytes  # empty in the compact form
    salt: bytes
    commitment: bytes
    body: bytes  # the chunks


def parse_head(data):
    """Stream: the parts of a stream, with the checks in the order of the page."""
    cursor = Cursor(data)
    suite, kind, wrapped_size, dek_id = parse_header(cursor)
    if kind != KIND_STREAM:
        raise FormatError("unsupported-kind", "a message")
    chunk_log2 = cursor.u8()
    if not 12 <= chunk_log2 <= 24:
        raise FormatError("unsupported-chunk-size", f"2^{chunk_log2}")
    room = cursor.u16()
    if any(cursor.take(5)):
        raise malformed("zero bytes of a stream")
    wrapped_keys = cursor.take(wrapped_size)
    if any(cursor.take(room)):
        raise malformed("room")
    salt, commitment = cursor.take(24), cursor.take(32)
    return Head(suite, dek_id, chunk_log2, wrapped_keys, salt, commitment, cursor.rest())


def expand_sha512(key, info, size):
    """HKDF-Expand with SHA-512, RFC 5869, section 2.3."""
    out, block = b"", b""
    for number in range(1, -(-size // 64) + 1):
        block = hmac.new(key, block + info + bytes([number]), hashlib.sha512).digest()
        out += block
    return out[:size]


def stream_keys(root, suite, salt, chunk_log2, aad):
    """Keys of a stream: key, base nonce and commitment."""
    info = b"c2sp.org/chunked-encryption@v1+" + STREAM_AEAD[suite] + b"\0" + salt
    out = expand_sha512(root, info + bytes([chunk_log2]) + aad, 76)
    return out[:32], out[32:44], out[44:]


def open_stream(data, keks, ctx, aad, handed_over):
    """Reading a stream: the plaintext. It is all there or refused, as this reader has no streaming."""
    head = parse_head(data)
    dek = dek_of(head, keks, ctx, handed_over)
    root = derive(dek, USE_STREAM_ROOT, head.suite, ctx)
    key, base, commitment = stream_keys(root, head.suite, head.salt, head.chunk_log2, aad)
    if not hmac.compare_digest(commitment, head.commitment):
        raise FormatError("invalid", "commitment differs")
    size, cursor, plaintext, index = 2**head.chunk_log2 + TAG_SIZE, Cursor(head.body), b"", 0
    while True:
        sealed = cursor.take(min(size, len(head.body) - cursor.at))
        if len(sealed) < TAG_SIZE:
            raise malformed("no last chunk")
        nonce = (int.from_bytes(base, "big") ^ index).to_bytes(12, "big")
        plaintext += aead_open(head.suite, key, nonce, b"", sealed)
        if len(sealed) < size:
            return plaintext
        index += 1
