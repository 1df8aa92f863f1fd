"""A server that lets nobody in: it refuses every call with UNAUTHENTICATED, over TLS, and prints the
credential and the name of who called. One port is for gRPC, one for gRPC-Web from pages of any site.

Shows what clients send, which a bridge keeps to itself. Usage: doorman.py KEY CERTIFICATE
"""

import concurrent.futures
import http.server
import pathlib
import ssl
import sys
import threading

import grpc

MESSAGE = "who are you?"


class Doorman(grpc.GenericRpcHandler):
    def service(self, handler_call_details):
        show(dict(handler_call_details.invocation_metadata))
        return grpc.unary_stream_rpc_method_handler(
            lambda _, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, MESSAGE)
        )


class WebDoorman(http.server.BaseHTTPRequestHandler):
    def do_OPTIONS(self):
        self.answer({"Access-Control-Allow-Headers": self.headers["Access-Control-Request-Headers"]})

    def do_POST(self):
        show({name.lower(): value for name, value in self.headers.items()})
        self.rfile.read(int(self.headers["Content-Length"]))
        status = {"Grpc-Status": str(grpc.StatusCode.UNAUTHENTICATED.value[0]), "Grpc-Message": MESSAGE}
        exposed = {"Access-Control-Expose-Headers": ", ".join(status)}
        self.answer(status | exposed | {"Content-Type": "application/grpc-web+proto"})

    def answer(self, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in ({"Access-Control-Allow-Origin": "*", "Content-Length": "0"} | headers).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def show(headers: dict[str, str]) -> None:
    print(headers.get("authorization", "nothing"), headers["user-agent"].split("/")[0], flush=True)


key, certificate = map(pathlib.Path, sys.argv[1:3])
server = grpc.server(concurrent.futures.ThreadPoolExecutor(4), handlers=[Doorman()])
credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
port = server.add_secure_port("127.0.0.1:0", credentials)
server.start()

web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), WebDoorman)
tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
tls.load_cert_chain(certificate, key)
web.socket = tls.wrap_socket(web.socket, server_side=True)
threading.Thread(target=web.serve_forever, daemon=True).start()

print(port, web.server_port, flush=True)
server.wait_for_termination()
