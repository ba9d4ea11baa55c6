"""Rego as the engine of Open Policy Agent evaluates it, for tests.

The engine is OPA's own, as a library. What is around it is not OPA: `serve` answers as OPA's
documentation of its REST interface says, in the parts that the tests use.

    opa.py evaluate             a JSON object with policies, data, package and inputs a line of
                                standard input; a JSON list with the answers a line of the output
    opa.py serve OPTIONS        an HTTP server, until standard input ends; OPTIONS is a JSON object

In both the errors of builtins are errors, as `strict-builtin-errors` makes them in OPA. The engine
knows no other way, so `serve` refuses to be asked without it.
"""

import http.server
import json
import os
import socketserver
import ssl
import sys
import threading
import urllib.parse

from opa_bindings import OpaEngine
from opa_bindings.engine import OpaError, OpaUndefinedError


def engine_of(policies, data):
    engine = OpaEngine()
    for name, text in policies:
        engine.add_policy(name, text)
    engine.add_data(data)
    return engine


def evaluate():
    for line in sys.stdin:
        asked = json.loads(line)
        answers = []
        try:
            engine = engine_of(asked["policies"], asked["data"])
        except OpaError as error:
            # It does not load, so there is no answer to any question.
            answers = [{"error": str(error)} for _ in asked["inputs"]]
            print(json.dumps(answers), flush=True)
            continue
        for input_ in asked["inputs"]:
            try:
                answers.append({"result": engine.eval_document(asked["package"], input_)})
            except OpaUndefinedError:
                answers.append({})
            except OpaError as error:
                answers.append({"error": str(error)})
        engine.close()
        print(json.dumps(answers), flush=True)


class Rest(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        """PUT /v1/policies/NAME: another policy takes the place of the one of that name."""
        try:
            text = self.body().decode()
            with self.server.turn:
                policies = {**self.server.policies, self.path.removeprefix("/v1/policies/"): text}
                self.server.engine = engine_of(policies.items(), self.server.data)
                self.server.policies = policies
            self.answer(200, {})
        except OpaError as error:
            self.answer(400, {"code": "invalid_parameter", "message": str(error)})

    def do_POST(self):
        body, url = self.body(), urllib.parse.urlsplit(self.path)
        options = urllib.parse.parse_qs(url.query)
        if self.server.token and self.headers["authorization"] != f"Bearer {self.server.token}":
            return self.answer(401, {"code": "unauthorized", "message": "request rejected"})
        if not url.path.startswith("/v1/data/"):
            return self.answer(404, {"code": "resource_not_found", "message": url.path})
        try:
            asked = json.loads(body)
        except ValueError as error:
            return self.answer(400, {"code": "invalid_parameter", "message": str(error)})
        if options.get("strict-builtin-errors") != ["true"]:
            return self.answer(400, {"code": "invalid_parameter", "message": "not strict"})
        package = url.path.removeprefix("/v1/data/").replace("/", ".")
        answer = {}
        if options.get("provenance") == ["true"]:
            answer["provenance"] = {"version": "1.20.2", "bundles": {}}
        try:
            with self.server.turn:
                answer["result"] = self.server.engine.eval_document(package, asked.get("input"))
        except OpaUndefinedError:
            pass
        except OpaError as error:
            message = "error(s) occurred while evaluating query"
            errors = [{"code": error.code, "message": error.message}]
            return self.answer(
                500, {"code": "internal_error", "message": message, "errors": errors}
            )
        return self.answer(200, answer)

    def body(self):
        return self.rfile.read(int(self.headers["content-length"] or 0))

    def answer(self, status, value):
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


class Tcp(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """A client that ends a connection, or trusts no certificate, is no error here."""


class Unix(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    handle_error = Tcp.handle_error


def tree(directory):
    """The files that `opa run --server DIRECTORY` loads, without the tests."""
    policies, data = {}, {}
    for place, _, names in os.walk(directory):
        for name in sorted(names):
            path = os.path.join(place, name)
            if name.endswith(".rego") and not name.endswith("_test.rego"):
                policies[path] = open(path, encoding="utf-8").read()
            elif name == "data.json":
                data = json.load(open(path, encoding="utf-8"))
    return policies, data


def serve(options):
    if socket_ := options.get("unix_socket"):
        server = Unix(socket_, Rest)
    else:
        server = Tcp(("127.0.0.1", 0), Rest)
    if certificate := options.get("certificate"):
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate, options["key"])
        if authority := options.get("client_authority"):
            tls.verify_mode = ssl.CERT_REQUIRED
            tls.load_verify_locations(authority)
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.token, server.turn = options.get("token"), threading.Lock()
    server.policies, server.data = tree(options["directory"])
    server.engine = engine_of(server.policies.items(), server.data)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(0 if socket_ else server.server_address[1], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["evaluate"]:
            evaluate()
        case ["serve", options]:
            serve(json.loads(options))
        case _:
            sys.exit(__doc__)
