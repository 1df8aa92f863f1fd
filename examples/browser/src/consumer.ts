// A consumer over gRPC-Web: a place in the log that survives reloads of the page, and a loop that
// resumes. Knows nothing of the page.

import { create } from "@bufbuild/protobuf";
import type { Duration } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/errors_pb";
import type { Event } from "./gen/prelude/bridge/v1/event_pb";
import { EventService, type SubscribeResponse } from "./gen/prelude/bridge/v1/event_service_pb";
import { StartPositionSchema } from "./gen/prelude/bridge/v1/position_pb";

export interface Options {
  bridge: string;
  token: string;
  types: string[];
  /** Does the work. A rejection ends the consumer before the cursor is stored. */
  process(event: Event): void | Promise<void>;
  /** Says what happens to the stream. */
  tell(state: string): void;
  signal: AbortSignal;
}

const BACKOFF_MIN_MS = 200;
const BACKOFF_MAX_MS = 30_000;
const SEEN_MAX = 10_000;

/** Of errors that are not the bridge's own. */
const RETRYABLE = new Set([
  Code.Unavailable,
  Code.ResourceExhausted,
  Code.Aborted,
  Code.DeadlineExceeded,
  // Broken connections have many codes.
  Code.Canceled,
  Code.Internal,
  Code.Unknown,
]);

/**
 * Whether the same call can succeed later. Of its own errors the bridge says so, by a RetryInfo; those of
 * proxies and broken connections have only a code. fetch tells of the latter with a TypeError.
 */
function isRetryable(error: unknown): error is ConnectError {
  if (!(error instanceof ConnectError)) return false;
  return error.findDetails(ErrorInfoSchema)[0]?.domain === "prelude-bridge"
    ? error.findDetails(RetryInfoSchema).length > 0
    : RETRYABLE.has(error.code);
}

const milliseconds = ({ seconds = 0n, nanos = 0 }: Partial<Duration> = {}): number =>
  Number(seconds) * 1000 + nanos / 1e6;

/** The place of one filter: another filter has another place. */
export const cursorKey = ({ bridge, types }: Pick<Options, "bridge" | "types">): string =>
  `cursor ${bridge} ${types.join(" ")}`;

/** Consumes until the signal; rejects with what does not pass by itself. */
export async function consume(options: Options): Promise<void> {
  const { bridge, token, types, process, tell, signal } = options;
  const client = createClient(EventService, createGrpcWebTransport({ baseUrl: bridge }));
  const headers = token ? { authorization: `Bearer ${token}` } : undefined;
  const key = cursorKey(options);
  const seen = new Set<string>();
  let attempts = 0;
  let retryAfterMs = 0;

  async function take(response: SubscribeResponse): Promise<void> {
    for (const event of response.events) {
      const id = `${event.appId}/${event.type}/${event.id}`;
      if (seen.has(id)) continue;
      seen.add(id);
      if (seen.size > SEEN_MAX) seen.delete(seen.values().next().value!);
      await process(event);
    }
    // Only now: a reload before this line repeats events, a reload after it loses none.
    localStorage.setItem(key, response.cursor);
    switch (response.notice.case) {
      case "draining":
        retryAfterMs = milliseconds(response.notice.value.retryAfter);
        break;
      case "skipped":
        tell("events were skipped");
        break;
      case "caughtUp":
        tell("live");
        break;
    }
    // Only progress resets the backoff, and a planned end: a server that accepts and fails must not be hammered.
    const worked = response.notice.case === "progress" || response.notice.case === "draining";
    if (response.events.length > 0 || worked) attempts = 0;
  }

  while (!signal.aborted) {
    let reason = "the stream ended too early";
    const cursor = localStorage.getItem(key);
    const start = create(StartPositionSchema, {
      position: cursor ? { case: "afterCursor", value: cursor } : { case: "earliest", value: {} },
    });
    try {
      const request = { filter: { types }, start, clientName: "example-browser" };
      for await (const response of client.subscribe(request, { signal, headers })) {
        await take(response);
      }
    } catch (error) {
      if (signal.aborted) return;
      if (!isRetryable(error)) throw error;
      retryAfterMs = Math.max(retryAfterMs, milliseconds(error.findDetails(RetryInfoSchema)[0]?.retryDelay));
      reason = error.rawMessage;
    }
    const stepMs = Math.min(BACKOFF_MIN_MS * 2 ** attempts++, BACKOFF_MAX_MS);
    const delayMs = retryAfterMs + stepMs * (0.5 + Math.random() / 2);
    retryAfterMs = 0;
    tell(`reconnecting in ${Math.round(delayMs)} ms: ${reason}`);
    await new Promise((resolve) => setTimeout(resolve, delayMs));
  }
}

/** What to do about an error that does not pass by itself. */
export function remedy(error: unknown): string {
  const { code, rawMessage } = ConnectError.from(error);
  switch (code) {
    case Code.OutOfRange:
      return `events were lost to retention; forget the place to continue: ${rawMessage}`;
    case Code.DataLoss:
      return `events are damaged on the bridge's disk; ask its operator: ${rawMessage}`;
    case Code.Unauthenticated:
    case Code.PermissionDenied:
      return `check the token: ${rawMessage}`;
    default:
      return rawMessage;
  }
}
