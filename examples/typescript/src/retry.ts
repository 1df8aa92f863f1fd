import { setTimeout as sleep } from "node:timers/promises";
import { status, type ServiceError } from "@grpc/grpc-js";
import type { Duration } from "./gen/google/protobuf/duration.js";
import { ErrorInfo, RetryInfo, Status } from "./gen/google/rpc/errors.js";

const BACKOFF_MIN_MS = 200;
const BACKOFF_MAX_MS = 30_000;

/** Of errors that are not the bridge's own. */
const RETRYABLE = new Set([
  status.UNAVAILABLE,
  status.RESOURCE_EXHAUSTED,
  status.ABORTED,
  status.DEADLINE_EXCEEDED,
  // Broken connections have many codes.
  status.CANCELLED,
  status.INTERNAL,
  status.UNKNOWN,
]);

/**
 * When to try again: doubles, on top of what the server asks for. The jitter keeps clients that lost
 * a server together from coming back together.
 */
export class Backoff {
  #attempts = 0;
  #retryAfterMs = 0;

  /** For progress only: a server that accepts and fails must not be hammered. */
  reset(): void {
    this.#attempts = 0;
  }

  /** What the server asks for. */
  retryAfter(duration: Duration | undefined): void {
    const { seconds = "0", nanos = 0 } = duration ?? {};
    this.#retryAfterMs = Math.max(this.#retryAfterMs, Number(seconds) * 1000 + nanos / 1e6);
  }

  /** Returns when it is time to try again, or at once after the signal. */
  async wait(reason: string, signal: AbortSignal): Promise<void> {
    if (signal.aborted) return;
    const stepMs = Math.min(BACKOFF_MIN_MS * 2 ** this.#attempts++, BACKOFF_MAX_MS);
    const delayMs = this.#retryAfterMs + stepMs * (0.5 + Math.random() / 2);
    this.#retryAfterMs = 0;
    console.error(`reconnecting in ${Math.round(delayMs)} ms: ${reason}`);
    await sleep(delayMs, undefined, { signal }).catch(() => {});
  }
}

/**
 * Whether the same call can succeed later. Of its own errors the bridge says so, by a RetryInfo; those of
 * proxies and broken connections have only a code.
 */
export function isRetryable(error: unknown): error is ServiceError {
  if (!isServiceError(error)) return false;
  return detail(error, "ErrorInfo", ErrorInfo)?.domain === "prelude-bridge"
    ? retryInfo(error) !== undefined
    : RETRYABLE.has(error.code);
}

export function retryInfo(error: ServiceError): RetryInfo | undefined {
  return detail(error, "RetryInfo", RetryInfo);
}

/** The detail of this kind, if there is one. */
function detail<T>(error: ServiceError, name: string, { decode }: { decode(bytes: Uint8Array): T }): T | undefined {
  const [status] = error.metadata.get("grpc-status-details-bin");
  const details = status ? Status.decode(status as Buffer).details : [];
  const found = details.find(({ typeUrl }) => typeUrl === `type.googleapis.com/google.rpc.${name}`);
  return found && decode(found.value);
}

/** Those of `prelude-bridge tail`. */
export function exitCode(error: unknown): number {
  switch (isServiceError(error) ? error.code : undefined) {
    case status.OUT_OF_RANGE:
      console.error("remove the cursor file to continue with the oldest event that is left");
      return 5;
    case status.DATA_LOSS:
      console.error("ask the bridge's operator, or set onDamaged to continue without them");
      return 1;
    case status.UNAUTHENTICATED:
    case status.PERMISSION_DENIED:
      console.error("check BRIDGE_TOKEN");
      return 4;
    case status.INVALID_ARGUMENT:
    case status.RESOURCE_EXHAUSTED: // The request is not valid, or too large.
      return 2;
    default:
      return 1;
  }
}

function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && "code" in error && "details" in error && "metadata" in error;
}
