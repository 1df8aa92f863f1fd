"""A gRPC server that lets nobody in: it refuses every call with UNAUTHENTICATED, over TLS if it is
given a key and a certificate, and prints the credential and the name of who called.

Stands in for a bridge with tokens, which this version is not. Usage: doorman.py [KEY CERTIFICATE]
"""

import concurrent.futures
import pathlib
import sys

import grpc


class Doorman(grpc.GenericRpcHandler):
    def service(self, handler_call_details):
        headers = dict(handler_call_details.invocation_metadata)
        print(headers.get("authorization", "nothing"), headers["user-agent"].split("/")[0], flush=True)
        return grpc.unary_stream_rpc_method_handler(
            lambda _, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
        )


server = grpc.server(concurrent.futures.ThreadPoolExecutor(4), handlers=[Doorman()])
if sys.argv[1:]:
    key, certificate = (pathlib.Path(name).read_bytes() for name in sys.argv[1:3])
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
else:
    port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
server.wait_for_termination()
