import { setTimeout as sleep } from "node:timers/promises";
import { status, type ServiceError } from "@grpc/grpc-js";
import type { Duration } from "./gen/google/protobuf/duration.js";

const BACKOFF_MIN_MS = 200;
const BACKOFF_MAX_MS = 30_000;

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

  /** What a draining server asks for. */
  retryAfter(duration: Duration | undefined): void {
    const { seconds = "0", nanos = 0 } = duration ?? {};
    this.#retryAfterMs = Number(seconds) * 1000 + nanos / 1e6;
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

/** Whether a call failed in a way that can pass by itself. */
export function isRetryable(error: unknown): error is ServiceError {
  return isServiceError(error) && RETRYABLE.has(error.code);
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
      return 2;
    default:
      return 1;
  }
}

function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && "code" in error && "details" in error && "metadata" in error;
}
