"""Opens the committed vectors with the second reader.

    python vectors.py VECTORS.json…

The schema of the files, and the names of the kinds of error, are in tests/vectors/README.md. It
prints a line for each check that fails, and then "N passed, M failed".
"""

import binascii
import hashlib
import json
import sys
from functools import partial

from reader import (
    KEY_SIZE, NONCE_SIZE, STREAM_AEAD, USE_BRANCH_DEK, USE_BRANCH_WRAP, USE_DEK_ID, USE_MESSAGE,
    USE_STREAM_ROOT, FormatError, aead_open, decode_context, decode_entry, decode_row,
    decode_wrapped_keys, derive, encode_context, encode_entry, encode_row, encode_wrapped_keys,
    open_message, open_stream, stream_keys, unwrap_branch, unwrap_local,
)

KINDS = {"not-sealed", "unsupported-version", "unsupported-suite", "unsupported-kind", "malformed"}
KINDS |= {"missing-wrapped-keys", "unknown-kek", "invalid", "unsupported-chunk-size"}
ANY = "any"  # the page leaves the error open
# By file: that of messages, that of branch keys, that of data domains, and that of streams.
SECTIONS = {
    "known_answer": ("known_answer", "keks", "messages", "contexts", "wrapped_keys"),
    "known_answers": ("known_answers", "keks", "branches", "key_rows", "branch_entries",
                      "messages"),
    "known_domain": ("known_domain", "keks", "branches", "messages"),
    "known_stream": ("known_stream", "keks", "streams"),
}
MESSAGE_FIELDS = ("name", "context", "aad", "sealed", "wrapped_keys", "error")
PAGE_DEK_ID = "f33d9a4834f3c7c628575d600ae8a259e42b4ffe42ac7909bba78f2b611c8615"
PAGE_DOMAIN_ID = "255cfbde0e80c8559530069ecde7dd38e3a4adc230d3c31fbca1fb7dc53d580e"
PAGE_BRANCH_ID = "0e01502636ee1af30c8adfbcb8eb868e509720c1720dff919da33c3e9fe87431"
PAGE_WRAP_KEY = "44fa570467340ec17fd3c9f4ea2ce0dd8dde09ff5e8d1f36d8b09f4a5af42ce2"
PAGE_DERIVED = "fbd10199cefbc3d33e933e547bb2f27e4328edaa3a46992571d9dc3a30c301c4"
PAGE_DERIVED_ID = "179e87fbbf2b29d8386faae5dc36fe4628421e6cfc0afe47c1d7d6521b816fac"


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


def context_bytes(context, reserved=False, domain=None):
    """CONTEXT of the schema, encoded."""
    pairs = [(name.encode(), value.encode()) for name, value in context]
    return encode_context(pairs, reserved, None if domain is None else domain.encode())


def load_keks(keks):
    """The KEKs: what unwraps, by the bytes of the KEK's id."""
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
        kek_id = kek["id"].encode()
        loaded[kek_id] = partial(unwrap_local, kek_id, versions)
    return loaded


def load_branches(branches):
    """The branches: the names of their pairs, by the bytes of their names."""
    for branch in branches:
        check_fields(branch, ("name", "per"))
    loaded = {b["name"].encode(): [name.encode() for name in b["per"]] for b in branches}
    expect(len(loaded) == len(branches), "a branch twice")
    return loaded


def check_message(open_sealed, vector, keks, branches):
    fields = MESSAGE_FIELDS if branches is None else (*MESSAGE_FIELDS, "rows")
    check_fields(vector, fields, ("plaintext", "plaintext_sha256", "domain"))
    error, handed_over = vector["error"], vector["wrapped_keys"]
    expect(error is None or error in KINDS or error == ANY, f"unknown error {error!r}")
    store = {binascii.unhexlify(by): binascii.unhexlify(row) for by, row in vector.get("rows", ())}
    of_branches = {b"branch:" + name: partial(unwrap_branch, name, names, store, keks)
                   for name, names in (branches or {}).items()}
    answers = ("plaintext" in vector) + ("plaintext_sha256" in vector)
    expect(answers == (error is None), "one plaintext is to be there if error is null, else none")
    sealed, aad = binascii.unhexlify(vector["sealed"]), binascii.unhexlify(vector["aad"])
    handed_over = None if handed_over is None else binascii.unhexlify(handed_over)
    ctx, outcome = context_bytes(vector["context"], domain=vector.get("domain")), None
    try:
        plaintext = open_sealed(sealed, keks | of_branches, ctx, aad, handed_over)
    except FormatError as refused:
        outcome = refused
    matches = outcome is not None if error == ANY else getattr(outcome, "kind", None) == error
    expect(matches, f"expected {error}, got {outcome}")
    if error is None and "plaintext" in vector:
        expect(plaintext == binascii.unhexlify(vector["plaintext"]), "other plaintext")
    elif error is None:
        digest = hashlib.sha256(plaintext).hexdigest()
        expect(digest == vector["plaintext_sha256"].lower(), "other plaintext")


def check_encoding(vector, decode, encode):
    """A vector of bytes, which are `valid` or not, or refused with a kind of `error`."""
    if "error" in vector:
        check_fields(vector, ("bytes", "why", "error"))
        expect(vector["error"] is None or vector["error"] in KINDS, "unknown error")
        valid = vector["error"] is None
    else:
        check_fields(vector, ("bytes", "why", "valid"))
        expect(isinstance(vector["valid"], bool), "valid is no boolean")
        valid = vector["valid"]
    data = binascii.unhexlify(vector["bytes"])
    try:
        decoded = decode(data)
    except FormatError as refused:
        expect(not valid, f"refused: {refused}")
        expect(vector.get("error", refused.kind) == refused.kind, f"refused: {refused}")
    else:
        expect(valid, "was not refused")
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

    def branch_answers(self, answers):
        self.check("known_answers", check_fields, answers,
                   ("branch_key", "context", "context_bytes", "id", "wrap_key", "derived",
                    "wrapped"))
        key = binascii.unhexlify(answers["branch_key"])
        ctx = context_bytes(answers["context"], reserved=True)
        wrap_key = derive(key, USE_BRANCH_WRAP, 3, ctx)
        found = [("context_bytes", ctx, answers["context_bytes"]),
                 ("id", derive(key, USE_DEK_ID, 0, ctx), answers["id"]),
                 ("wrap_key", wrap_key, answers["wrap_key"])]
        for number, answer in enumerate(answers["derived"]):
            self.check("derived", check_fields, answer, ("context", "salt", "dek", "dek_id"))
            of_dek = context_bytes(answer["context"])
            salt = binascii.unhexlify(answer["salt"])
            dek = derive(key, USE_BRANCH_DEK, 0, of_dek + salt)
            found.append((f"derived[{number}]", dek, answer["dek"]))
            found.append((f"id of derived[{number}]", derive(dek, USE_DEK_ID, 0, of_dek),
                          answer["dek_id"]))
        for number, answer in enumerate(answers["wrapped"]):
            self.check("wrapped", check_fields, answer, ("context", "dek", "nonce", "encrypted"))
            nonce, sealed = (binascii.unhexlify(answer[x]) for x in ("nonce", "encrypted"))
            dek = aead_open(3, wrap_key, nonce, context_bytes(answer["context"]), sealed)
            found.append((f"wrapped[{number}]", dek, answer["dek"]))
        for name, value, expected in found:
            self.check(f"known_answers: {name}", check_hex, value, expected)

    def domain_answer(self, answer):
        self.check("known_domain", check_fields, answer,
                   ("dek", "domain", "context", "context_bytes", "dek_id"))
        dek = binascii.unhexlify(answer["dek"])
        ctx = context_bytes(answer["context"], domain=answer["domain"])
        dek_id = derive(dek, USE_DEK_ID, 0, ctx)
        for name, found, expected in (
            ("context_bytes", ctx, answer["context_bytes"]),
            ("dek_id", dek_id, answer["dek_id"]),
            ("the page", dek_id, PAGE_DOMAIN_ID),
        ):
            self.check(f"known_domain: {name}", check_hex, found, expected)

    def stream_answer(self, answer):
        self.check("known_stream", check_fields, answer,
                   ("dek", "context", "salt", "chunk_log2", "aad", "suites"))
        self.check("known_stream: suites", check_fields, answer["suites"], ("1", "2"))
        dek, ctx = binascii.unhexlify(answer["dek"]), context_bytes(answer["context"])
        salt, aad = binascii.unhexlify(answer["salt"]), binascii.unhexlify(answer["aad"])
        for suite in STREAM_AEAD:
            expected = answer["suites"][str(suite)]
            self.check("known_stream: keys", check_fields, expected,
                       ("root", "key", "base_nonce", "commitment"))
            root = derive(dek, USE_STREAM_ROOT, suite, ctx)
            found = (root, *stream_keys(root, suite, salt, answer["chunk_log2"], aad))
            for name, value in zip(("root", "key", "base_nonce", "commitment"), found):
                self.check(f"known_stream: {name} {suite}", check_hex, value, expected[name])

    def page(self):
        ctx = encode_context([(b"tenant", b"alice")])
        dek = bytes(range(32))
        branch_key = bytes(range(0x20, 0x40))
        own = encode_context([(b"tenant", b"alice"), (b"waxseal:branch", b"orders"),
                              (b"waxseal:period", b"2026-11-01T00:00:00Z")], reserved=True)
        derived = derive(branch_key, USE_BRANCH_DEK, 0, ctx + bytes(range(0x40, 0x50)))
        self.check("page: size of ctx", expect, len(own) == 83, "is not 83")
        for name, found, expected in (
            ("DEK id", derive(dek, USE_DEK_ID, 0, ctx), PAGE_DEK_ID),
            ("id of a branch key", derive(branch_key, USE_DEK_ID, 0, own), PAGE_BRANCH_ID),
            ("D(11, 03)", derive(branch_key, USE_BRANCH_WRAP, 3, own), PAGE_WRAP_KEY),
            ("D(12, 00)", derived, PAGE_DERIVED),
            ("its DEK id", derive(derived, USE_DEK_ID, 0, ctx), PAGE_DERIVED_ID),
        ):
            self.check(f"page: {name}", check_hex, found, expected)

    def vectors(self, doc):
        known = [sections for name, sections in SECTIONS.items() if name in doc]
        self.check("file: known answers", expect, len(known) == 1, "none, or two kinds of them")
        for sections in known:
            self.check("file", check_fields, doc, ("format", *sections))
            for section in sections:
                self.check(f"file: {section}", expect, doc.get(section), "missing or empty")
        self.check("file: format", expect, doc.get("format") == 1, "is not 1")
        if "known_answer" in doc:
            self.known_answer(doc["known_answer"])
        if "known_domain" in doc:
            self.domain_answer(doc["known_domain"])
        if "known_stream" in doc:
            self.stream_answer(doc["known_stream"])
        if "known_answers" in doc:
            self.branch_answers(doc["known_answers"])
        keks = self.check("keks", load_keks, doc.get("keks", ())) or {}
        branches = None
        if "branches" in doc:
            branches = self.check("branches", load_branches, doc["branches"])
        for number, vector in enumerate(doc.get("messages", ())):
            name = vector.get("name", "") if isinstance(vector, dict) else ""
            self.check(f"messages[{number}] {name}", check_message, open_message, vector, keks,
                       branches)
        for number, vector in enumerate(doc.get("streams", ())):
            name = vector.get("name", "") if isinstance(vector, dict) else ""
            self.check(f"streams[{number}] {name}", check_message, open_stream, vector, keks, None)
        codecs = {"contexts": (decode_context, encode_context),
                  "wrapped_keys": (decode_wrapped_keys, encode_wrapped_keys),
                  "key_rows": (decode_row, encode_row),
                  "branch_entries": (decode_entry, encode_entry)}
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
    if not arguments:
        print("usage: python vectors.py VECTORS.json…", file=sys.stderr)
        return 2
    run = Run()
    run.check("page: read to its end", run.page)
    for path in arguments:
        doc = run.check("file: JSON", load, path)
        if doc is not None:
            run.check("file: read to its end", run.vectors, doc)
    print(f"{run.passed} passed, {run.failed} failed")
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
