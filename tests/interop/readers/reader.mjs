// Reads everything that a bridge has; see ../shared.py.
// Usage: reader.mjs ADDRESS CASES, with the cases as a JSON list of objects: options of the channel, and
// `format`, the payload format of events that are to be printed.

import { createHash } from "node:crypto";
import { credentials } from "@grpc/grpc-js";
import { Event } from "./dist/gen/prelude/bridge/v1/event.js";
import { EventServiceClient, SubscribeRequest } from "./dist/gen/prelude/bridge/v1/event_service.js";
import { PayloadFormat } from "./dist/gen/prelude/bridge/v1/position.js";

/** The JSON form of an event, with all digits of its times: `toJSON` prints those of a Date. */
function json(event) {
  const whole = Event.toJSON(event);
  const typed = event.payload && whole[event.payload.$case];
  for (const [message, printed] of [[event, whole], [event.payload?.value, typed]]) {
    for (const [name, { seconds, nanos } = {}] of Object.entries(message ?? {})) {
      if (typeof nanos !== "number") continue;
      const second = new Date(Number(seconds) * 1000).toISOString().slice(0, 19);
      printed[name] = `${second}.${String(nanos).padStart(9, "0")}Z`;
    }
  }
  return whole;
}

const [address, cases] = process.argv.slice(2);

for (const { format, ...options } of JSON.parse(cases)) {
  const request = SubscribeRequest.fromPartial({
    start: { position: { $case: "earliest", value: {} } },
    stop: { position: { $case: "head", value: {} } },
    payloadFormat: format ?? PayloadFormat.PAYLOAD_FORMAT_RAW,
  });
  const began = performance.now();
  const client = new EventServiceClient(address, credentials.createInsecure(), options);
  const digest = createHash("sha256");
  let events = 0;
  for await (const response of client.subscribe(request)) {
    for (const event of response.events) {
      events += 1;
      digest.update(event.rawJson).update("\n");
      if (format) console.log(JSON.stringify(json(event)));
    }
  }
  client.close();
  const seconds = (performance.now() - began) / 1000;
  console.log(JSON.stringify({ result: { events, digest: digest.digest("hex"), seconds } }));
}
