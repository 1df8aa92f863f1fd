// Reads everything that a bridge has, in a page; browser.mjs calls it.

import { create, toJsonString } from "@bufbuild/protobuf";
import { createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { EventSchema } from "./gen/prelude/bridge/v1/event_pb";
import { EventService, SubscribeRequestSchema } from "./gen/prelude/bridge/v1/event_service_pb";
import type { PayloadFormat } from "./gen/prelude/bridge/v1/position_pb";

Object.assign(globalThis, {
  async read(bridge: string, payloadFormat: PayloadFormat): Promise<string[]> {
    const client = createClient(EventService, createGrpcWebTransport({ baseUrl: bridge }));
    const request = create(SubscribeRequestSchema, {
      start: { position: { case: "earliest", value: {} } },
      stop: { position: { case: "head", value: {} } },
      payloadFormat,
    });
    const lines = [];
    for await (const { events } of client.subscribe(request)) {
      lines.push(...events.map((event) => toJsonString(EventSchema, event)));
    }
    return lines;
  },
});
