"""The peers that are there for Python, in one process, from memory to memory. Reads lines
`NAME WHAT BYTES SECONDS` and answers each with the seconds that one call takes: the mean over as many
calls as fit in SECONDS.

The AWS Encryption SDK: a raw AES key, data keys cached by its caching CMM, the suite that commits to
the key and signs nothing, frames of 64 KiB, which were the fastest of 64 KiB, 1 MiB and 16 MiB. It is
written in Python and makes its AEAD calls in C (OpenSSL).
Tink: streaming AEAD of a keyset in memory, AES-256-GCM-HKDF with segments of 1 MiB or of 4 KiB. It is
C++ behind a binding that takes and gives file objects of Python. Its plain AEAD, AES-256-GCM, is one
call of the binding.
"""

import io
import os
import sys
import time

import aws_encryption_sdk
import tink
from aws_encryption_sdk.identifiers import (
    Algorithm,
    CommitmentPolicy,
    EncryptionKeyType,
    WrappingAlgorithm,
)
from aws_encryption_sdk.internal.crypto.wrapping_keys import WrappingKey
from aws_encryption_sdk.key_providers.raw import RawMasterKeyProvider
from tink import aead, streaming_aead


class OneKey(RawMasterKeyProvider):
    provider_id = "bench"

    def __init__(self, **_):
        self.key = WrappingKey(
            wrapping_algorithm=WrappingAlgorithm.AES_256_GCM_IV12_TAG16_NO_PADDING,
            wrapping_key=os.urandom(32),
            wrapping_key_type=EncryptionKeyType.SYMMETRIC,
        )
        self.add_master_key("bench")

    def _get_raw_key(self, key_id):
        return self.key


class Esdk:
    def __init__(self):
        self.materials = aws_encryption_sdk.CachingCryptoMaterialsManager(
            master_key_provider=OneKey(),
            cache=aws_encryption_sdk.LocalCryptoMaterialsCache(10),
            max_age=3600.0,
        )
        self.client = aws_encryption_sdk.EncryptionSDKClient(
            commitment_policy=CommitmentPolicy.REQUIRE_ENCRYPT_REQUIRE_DECRYPT
        )
        self.context = {"tenant": "alice"}

    def encrypt(self, plaintext):
        sealed, _ = self.client.encrypt(
            source=plaintext,
            materials_manager=self.materials,
            encryption_context=self.context,
            algorithm=Algorithm.AES_256_GCM_HKDF_SHA512_COMMIT_KEY,
            frame_length=64 << 10,
        )
        return sealed

    def decrypt(self, sealed):
        opened, _ = self.client.decrypt(source=sealed, materials_manager=self.materials)
        return opened


class Parts(io.RawIOBase):
    """Keeps what is written to it as it comes. A BytesIO copies once more."""

    def __init__(self):
        self.parts = []

    def writable(self):
        return True

    def write(self, part):
        self.parts.append(part)
        return len(part)


class TinkStream:
    def __init__(self, template):
        self.primitive = tink.new_keyset_handle(template).primitive(streaming_aead.StreamingAead)
        self.aad = b"tenant=alice"

    def encrypt(self, plaintext):
        to = Parts()
        with self.primitive.new_encrypting_stream(to, self.aad) as stream:
            stream.write(plaintext)
        return b"".join(to.parts)

    def decrypt(self, sealed):
        with self.primitive.new_decrypting_stream(io.BytesIO(sealed), self.aad) as stream:
            # With a size, so that it reads much at a time.
            return stream.read(len(sealed))


class TinkAead:
    def __init__(self):
        template = aead.aead_key_templates.AES256_GCM
        self.primitive = tink.new_keyset_handle(template).primitive(aead.Aead)
        self.aad = b"tenant=alice"

    def encrypt(self, plaintext):
        return self.primitive.encrypt(plaintext, self.aad)

    def decrypt(self, sealed):
        return self.primitive.decrypt(sealed, self.aad)


def main():
    aead.register()
    streaming_aead.register()
    templates = streaming_aead.streaming_aead_key_templates
    peers = {
        "esdk": Esdk(),
        "tink-1m": TinkStream(templates.AES256_GCM_HKDF_1MB),
        "tink-4k": TinkStream(templates.AES256_GCM_HKDF_4KB),
        "tink-aead": TinkAead(),
    }
    print("ready", flush=True)
    for line in sys.stdin:
        name, what, size, seconds = line.split()
        peer, plaintext = peers[name], b"\x07" * int(size)
        sealed = peer.encrypt(plaintext)
        if peer.decrypt(sealed) != plaintext:
            sys.exit(f"{name} did not give back what it was given")
        work, given = (peer.encrypt, plaintext) if what == "encrypt" else (peer.decrypt, sealed)
        calls, start = 0, time.perf_counter()
        while True:
            work(given)
            calls += 1
            taken = time.perf_counter() - start
            if taken >= float(seconds):
                break
        print(taken / calls, flush=True)


main()
