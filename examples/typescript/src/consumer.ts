// Prints the events of a bridge as JSON lines, each once and in order, whatever happens to the
// bridge, the network or itself. Replace `processEvent` by what your service does.

import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import { status, type ClientReadableStream, type ServiceError } from "@grpc/grpc-js";
import { connect, metadata } from "./connection.js";
import { CursorStore, Recent } from "./store.js";
import { Event } from "./gen/prelude/bridge/v1/event.js";
import { SubscribeRequest, type SubscribeResponse } from "./gen/prelude/bridge/v1/event_service.js";

/** Exit codes, those of `prelude-bridge tail`. */
const Exit = { failed: 1, usage: 2, refused: 4, cursorExpired: 5 };

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

const { values: flags } = parseArgs({
  options: {
    type: { type: "string", multiple: true },
    "exclude-type": { type: "string", multiple: true },
    app: { type: "string", multiple: true },
    user: { type: "string", multiple: true },
    "cursor-file": { type: "string", default: "consumer.cursor" },
  },
});

class Consumer {
  readonly #client = connect();
  readonly #store = new CursorStore(flags["cursor-file"]);
  readonly #seen = new Recent(10_000);
  readonly #stopped = new AbortController();
  #call: ClientReadableStream<SubscribeResponse> | undefined;
  #cursor = "";
  #attempts = 0;
  /** What a draining server asks for. */
  #retryAfterMs = 0;

  /** Ends after the response that is being processed. */
  stop(): void {
    this.#stopped.abort();
    this.#call?.cancel();
  }

  async run(): Promise<void> {
    this.#cursor = await this.#store.load();
    const { signal } = this.#stopped;
    while (!signal.aborted) {
      let reason = "the stream ended too early";
      try {
        await this.#subscribe();
      } catch (error) {
        if (signal.aborted && isServiceError(error)) break;
        if (!isServiceError(error) || !RETRYABLE.has(error.code)) throw error;
        reason = error.details;
      }
      if (signal.aborted) break;
      const delayMs = this.#nextDelayMs();
      console.error(`reconnecting in ${Math.round(delayMs)} ms: ${reason}`);
      await sleep(delayMs, undefined, { signal }).catch(() => {});
    }
    this.#client.close();
  }

  /** Consumes one stream to its end. */
  async #subscribe(): Promise<void> {
    const request = SubscribeRequest.fromPartial({
      filter: {
        types: flags.type,
        excludeTypes: flags["exclude-type"],
        appIds: flags.app,
        userIds: flags.user,
      },
      start: {
        position: this.#cursor
          ? { $case: "afterCursor", value: this.#cursor }
          : { $case: "earliest", value: {} },
      },
      clientName: "example-typescript",
    });
    this.#call = this.#client.subscribe(request, metadata());
    for await (const response of this.#call as AsyncIterable<SubscribeResponse>) {
      await this.#take(response);
      if (this.#stopped.signal.aborted) return;
    }
  }

  async #take(response: SubscribeResponse): Promise<void> {
    for (const event of response.events) {
      if (this.#seen.add(`${event.appId}/${event.id}`)) await processEvent(event);
    }
    // Only now: a crash before this line repeats events, a crash after it loses none.
    if (response.cursor !== this.#cursor) {
      await this.#store.save(response.cursor);
      this.#cursor = response.cursor;
    }
    const notice = response.notice;
    switch (notice?.$case) {
      case "draining": {
        const { seconds = "0", nanos = 0 } = notice.value.retryAfter ?? {};
        this.#retryAfterMs = Number(seconds) * 1000 + nanos / 1e6;
        console.error("the server is shutting down");
        break;
      }
      case "skipped":
        console.error("lost to retention:", notice.value);
        break;
      case "caughtUp":
        console.error("caught up");
        break;
    }
    // Only progress resets the backoff: a server that accepts and fails must not be hammered.
    if (response.events.length > 0 || notice?.$case === "progress") this.#attempts = 0;
  }

  /** Doubles, on top of what the server asks for. The jitter keeps clients apart. */
  #nextDelayMs(): number {
    const stepMs = Math.min(BACKOFF_MIN_MS * 2 ** this.#attempts++, BACKOFF_MAX_MS);
    const delayMs = this.#retryAfterMs + stepMs * (0.5 + Math.random() / 2);
    this.#retryAfterMs = 0;
    return delayMs;
  }
}

/** Where a service does its work. A rejection ends the program before the cursor is stored. */
async function processEvent(event: Event): Promise<void> {
  const line = JSON.stringify(Event.toJSON(event)) + "\n";
  await new Promise<void>((resolve, reject) => {
    process.stdout.write(line, (error) => (error ? reject(error) : resolve()));
  });
}

function isServiceError(error: unknown): error is ServiceError {
  return error instanceof Error && "code" in error && "details" in error && "metadata" in error;
}

function exitCode(error: unknown): number {
  switch (isServiceError(error) ? error.code : undefined) {
    case status.OUT_OF_RANGE:
      console.error("remove the cursor file to continue with the oldest event that is left");
      return Exit.cursorExpired;
    case status.UNAUTHENTICATED:
    case status.PERMISSION_DENIED:
      console.error("check BRIDGE_TOKEN");
      return Exit.refused;
    case status.INVALID_ARGUMENT:
      return Exit.usage;
    default:
      return Exit.failed;
  }
}

const consumer = new Consumer();
process.once("SIGTERM", () => consumer.stop());
process.once("SIGINT", () => consumer.stop());
try {
  await consumer.run();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exit(exitCode(error));
}
