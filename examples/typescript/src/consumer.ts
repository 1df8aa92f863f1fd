// Prints the events of a bridge as JSON lines, each once and in order, whatever happens to the
// bridge, the network or itself. Replace `processEvent` by what your service does.

import { parseArgs } from "node:util";
import type { ClientReadableStream } from "@grpc/grpc-js";
import { connect, metadata } from "./connection.js";
import { Backoff, exitCode, isRetryable, retryInfo } from "./retry.js";
import { CursorStore, Recent } from "./store.js";
import { Event } from "./gen/prelude/bridge/v1/event.js";
import { SubscribeRequest, type SubscribeResponse } from "./gen/prelude/bridge/v1/event_service.js";
import type { Filter } from "./gen/prelude/bridge/v1/position.js";

const { values: flags } = parseArgs({
  options: {
    type: { type: "string", multiple: true, default: [] },
    "exclude-type": { type: "string", multiple: true, default: [] },
    app: { type: "string", multiple: true, default: [] },
    user: { type: "string", multiple: true, default: [] },
    "cursor-file": { type: "string", default: "consumer.cursor" },
  },
});
const filter: Filter = {
  types: flags.type,
  excludeTypes: flags["exclude-type"],
  appIds: flags.app,
  userIds: flags.user,
};

class Consumer {
  readonly #client = connect();
  readonly #store = new CursorStore(flags["cursor-file"]);
  readonly #seen = new Recent(10_000);
  readonly #backoff = new Backoff();
  readonly #stopped = new AbortController();
  #call: ClientReadableStream<SubscribeResponse> | undefined;

  /** Ends after the response that is being processed. */
  stop(): void {
    this.#stopped.abort();
    this.#call?.cancel();
  }

  async run(): Promise<void> {
    const { signal } = this.#stopped;
    await this.#store.load();
    while (!signal.aborted) {
      try {
        await this.#subscribe(signal);
        await this.#backoff.wait("the stream ended too early", signal);
      } catch (error) {
        if (!isRetryable(error)) throw error;
        this.#backoff.retryAfter(retryInfo(error)?.retryDelay);
        await this.#backoff.wait(error.details, signal);
      }
    }
    this.#client.close();
  }

  /** Consumes one stream to its end. */
  async #subscribe(signal: AbortSignal): Promise<void> {
    const { cursor } = this.#store;
    const request = SubscribeRequest.fromPartial({
      filter,
      start: {
        position: cursor ? { $case: "afterCursor", value: cursor } : { $case: "earliest", value: {} },
      },
      clientName: "example-typescript",
    });
    this.#call = this.#client.subscribe(request, metadata());
    for await (const response of this.#call as AsyncIterable<SubscribeResponse>) {
      await this.#take(response);
      if (signal.aborted) return;
    }
  }

  /**
   * Processes a response, and only then stores its cursor: a crash in between repeats events, and
   * never loses one.
   */
  async #take({ events, cursor, notice }: SubscribeResponse): Promise<void> {
    for (const event of events) {
      if (this.#seen.add(`${event.appId}/${event.type}/${event.id}`)) await processEvent(event);
    }
    await this.#store.save(cursor);
    if (notice?.$case === "draining") this.#backoff.retryAfter(notice.value.retryAfter);
    if (notice?.$case === "skipped") console.error("events were skipped:", notice.value);
    // A draining stream worked: its end is planned.
    if (events.length > 0 || notice?.$case === "progress" || notice?.$case === "draining") this.#backoff.reset();
  }
}

/** Where a service does its work. A rejection ends the program before the cursor is stored. */
async function processEvent(event: Event): Promise<void> {
  const line = JSON.stringify(Event.toJSON(event)) + "\n";
  await new Promise<void>((resolve, reject) => {
    process.stdout.write(line, (error) => (error ? reject(error) : resolve()));
  });
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
