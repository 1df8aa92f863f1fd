import { readFileSync } from "node:fs";
import { credentials, Metadata } from "@grpc/grpc-js";
import { EventServiceClient } from "./gen/prelude/bridge/v1/event_service.js";

/**
 * Connects to BRIDGE_ADDRESS: over TLS if BRIDGE_CA names a file of CA certificates, or is "system"
 * for those of Node.
 */
export function connect(): EventServiceClient {
  const ca = process.env["BRIDGE_CA"];
  const transport = !ca
    ? credentials.createInsecure()
    : credentials.createSsl(ca === "system" ? null : readFileSync(ca));
  return new EventServiceClient(process.env["BRIDGE_ADDRESS"] || "127.0.0.1:50051", transport, {
    // Notices a server that is gone without a word, and keeps proxies from closing idle streams.
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 20_000,
    "grpc.max_receive_message_length": 16 << 20,
    // gRPC's own backoff, up to two minutes, would come on top of ours.
    "grpc.max_reconnect_backoff_ms": 1_000,
  });
}

/** BRIDGE_TOKEN as the credential of a call. */
export function metadata(): Metadata {
  const metadata = new Metadata();
  const token = process.env["BRIDGE_TOKEN"];
  if (token) metadata.set("authorization", `Bearer ${token}`);
  return metadata;
}
