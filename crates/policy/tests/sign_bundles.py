"""Signs bundles as OPA's documentation says, written from it alone, and prints them as JSON.

Each case has the files of a bundle, the signatures, the keys that verify it, and what is wrong with it
(null where nothing is).
"""

import base64
import hashlib
import hmac
import json

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

SECRET = b"0123456789abcdef0123456789abcdef"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
OTHER_EC = ec.generate_private_key(ec.SECP256R1())

FILES = {
    ".manifest": '{ "roots": [""], "revision":"signed-7", "rego_version": 1 }',
    "policy.rego": "package waxseal\n\ndefault allow := false\n\n"
    "allow if input.caller.service in data.orders.services\n",
    "orders/data.json": '{"services": ["billing"], "z": [1.0, -0, 1e3, 12345678901234567890123],'
    ' "a": {"\\u00e9\\u2028<&>": null, "B": true, "\\ud83d\\udd11": "\\t\\u0001\\u007f/"}}\n',
    "README": "read me\n",
}


class Number(str):
    """As it was written."""


def canonical(value):
    if isinstance(value, dict):
        parts = sorted(value.items(), key=lambda part: part[0].encode())
        return "{" + ",".join(f"{canonical(name)}:{canonical(of)}" for name, of in parts) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    if isinstance(value, Number):
        return str(value)
    text = json.dumps(value, ensure_ascii=False)
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def digest(name, text, algorithm="SHA-256"):
    if name.split("/")[-1] in (".manifest", "data.json"):
        text = canonical(json.loads(text, parse_int=Number, parse_float=Number))
    return hashlib.new(algorithm.replace("-", "").lower(), text.encode()).hexdigest()


def entries(files, algorithm="SHA-256"):
    return [
        {"name": name, "hash": digest(name, text, algorithm), "algorithm": algorithm}
        for name, text in files.items()
    ]


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signature(algorithm, key, signed):
    match algorithm:
        case "RS256":
            return key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
        case "PS256":
            pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
            return key.sign(signed, pss, hashes.SHA256())
        case "ES256":
            r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA256())))
            return r.to_bytes(32) + s.to_bytes(32)
        case "HS256":
            return hmac.digest(key, signed, "sha256")
        case "none":
            return b""


def token(algorithm, key, claims, header=None):
    header = {"alg": algorithm, "typ": "JWT", **(header or {})}
    signed = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}"
    return f"{signed}.{b64(signature(algorithm, key, signed.encode()))}"


def pem(key):
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()


def key(algorithm, key_, id=None, scope=None):
    text = key_.decode() if isinstance(key_, bytes) else pem(key_)
    return {"algorithm": algorithm, "key": text, "id": id, "scope": scope}


cases = []


def case(name, wrong, keys, tokens, files=FILES, **more):
    signatures = json.dumps({"signatures": tokens, **more})
    cases.append(
        {"name": name, "wrong": wrong, "keys": keys, "files": files, "signatures": signatures}
    )


good = {"files": entries(FILES)}
for algorithm, own, other in [
    ("RS256", RSA, OTHER_RSA),
    ("PS256", RSA, OTHER_RSA),
    ("ES256", EC, OTHER_EC),
    ("HS256", SECRET, SECRET[::-1]),
]:
    one = [key(algorithm, own)]
    case(f"{algorithm}", None, one, [token(algorithm, own, good)])
    case(f"{algorithm} of another", "not of this key", one, [token(algorithm, other, good)])
    named = [key(algorithm, other, "a"), key(algorithm, own, "b")]
    by_b = token(algorithm, own, good, {"kid": "b"})
    case(f"{algorithm} by its id", None, named, [by_b])
    old = token(algorithm, own, {**good, "keyid": "b"})
    case(f"{algorithm} by the older id", None, named, [old])
    case(f"{algorithm} by an id, one key without", None, one, [by_b])
    as_a = token(algorithm, own, good, {"kid": "a"})
    case(f"{algorithm} by the id of another", "not of this key", named, [as_a])

rs256, one = token("RS256", RSA, good), [key("RS256", RSA)]
two = [key("RS256", RSA, "a"), key("ES256", EC, "b")]
case("no id, two keys", "which key", two, [rs256])
case("no id, two keys without", "which key", [key("RS256", RSA), key("ES256", EC)], [rs256])
case("an unknown id", "not known", two, [token("RS256", RSA, good, {"kid": "c"})])
case("an unknown id, one key", "not known", two[:1], [token("RS256", RSA, good, {"kid": "c"})])
case("no id, one key with one", None, two[:1], [rs256])
case("no key", "which key", [], [rs256])

# What a token says of its algorithm is not believed.
case("none", "algorithm", one, [token("none", RSA, good)])
case("PS256 for RS256", "algorithm", one, [token("PS256", RSA, good)])
confused = token("HS256", pem(RSA).encode(), good)
case("HS256 with the public key", "algorithm", one, [confused])
case("RS256 without a signature", "not of this key", one, [rs256.rsplit(".", 1)[0] + "."])
case("an extension", "extensions", one, [token("RS256", RSA, good, {"crit": ["b64"], "b64": True})])

scoped = {**good, "scope": "write"}
case("a scope", None, [key("RS256", RSA, scope="write")], [token("RS256", RSA, scoped)])
case("another scope", "scope", [key("RS256", RSA, scope="read")], [token("RS256", RSA, scoped)])
case("a scope that is not asked for", "scope", one, [token("RS256", RSA, scoped)])
case("no scope where one is asked for", "scope", [key("RS256", RSA, scope="write")], [rs256])

case("no signature", "another number", one, [])
case("two signatures", "another number", one, [rs256, rs256])
case("a plugin", "verifier", one, [rs256], plugin="mine")
for nothing in ["", ".", "..", "a.b", "a.b.c", "e30.e30.", rs256 + ".", rs256 + "=", " " + rs256]:
    case(f"no token {nothing[:9]!r}", "no JWT", one, [nothing])

for algorithm in ["SHA-384", "SHA-512"]:
    claims = {"files": entries(FILES, algorithm)}
    case(algorithm, None, one, [token("RS256", RSA, claims)])
for algorithm in ["MD5", "SHA-1", "", "sha-256"]:
    weak = [{**of, "algorithm": algorithm} for of in good["files"]]
    case(f"hashed with {algorithm!r}", "hashes with", one, [token("RS256", RSA, {"files": weak})])

slashed = [{**of, "name": "/" + of["name"]} for of in good["files"]]
case("names with a slash", None, one, [token("RS256", RSA, {"files": slashed})])
upper = [{**of, "hash": of["hash"].upper()} for of in good["files"]]
case("hashes in capitals", None, one, [token("RS256", RSA, {"files": upper})])
twice = token("RS256", RSA, {"files": good["files"] + slashed[:1]})
case("a file twice", "twice", one, [twice])

for name, text in FILES.items():
    less = {other: of for other, of in FILES.items() if other != name}
    case(f"{name} is missing", "not there", one, [rs256], less)
    changed = text.replace("services", "servicez").replace("me", "m\u0435").replace("7", "8")
    case(f"{name} is changed", "another", one, [rs256], {**FILES, name: changed})
    case(f"{name} is not covered", "does not cover", one, [token("RS256", RSA, {"files": entries(less)})])
case("a file more", "does not cover", one, [rs256], {**FILES, "more.rego": "package more\n"})
case("a file more that decides nothing", "does not cover", one, [rs256], {**FILES, "x.txt": ""})

# What a document says is signed, and not how it is written.
spaced = json.dumps(json.loads(FILES[".manifest"]), indent=4)
case("written otherwise", None, one, [rs256], {**FILES, ".manifest": spaced})
source = {**FILES, "policy.rego": FILES["policy.rego"] + "\n"}
case("a policy written otherwise", "another", one, [rs256], source)

print(json.dumps(cases))
