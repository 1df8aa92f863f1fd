"""What the environment says about the bridge: BRIDGE_ADDRESS, BRIDGE_CA and BRIDGE_TOKEN."""

import os
import pathlib

import grpc

OPTIONS = [
    # Notices a server that is gone without a word, and keeps proxies from closing idle streams.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 16 << 20),
    # gRPC's own backoff, up to two minutes, would come on top of ours.
    ("grpc.max_reconnect_backoff_ms", 1_000),
]


def connect(library=grpc):
    """A channel of grpc or of grpc.aio."""
    address = os.environ.get("BRIDGE_ADDRESS") or "127.0.0.1:50051"
    # TLS if BRIDGE_CA names a file of CA certificates, or is "system".
    ca = os.environ.get("BRIDGE_CA")
    if not ca:
        return library.insecure_channel(address, OPTIONS)
    credentials = grpc.ssl_channel_credentials(None if ca == "system" else pathlib.Path(ca).read_bytes())
    return library.secure_channel(address, credentials, OPTIONS)


def metadata() -> list[tuple[str, str]]:
    """BRIDGE_TOKEN as the credential of a call."""
    token = os.environ.get("BRIDGE_TOKEN")
    return [("authorization", f"Bearer {token}")] if token else []
