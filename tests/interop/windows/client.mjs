// Reads everything that a bridge has, with options of the channel; see `run` beside it.
// Usage: windows.mjs ADDRESS OPTIONS, with the options as a JSON list of objects.

import { createHash } from "node:crypto";
import { credentials } from "@grpc/grpc-js";
import { EventServiceClient, SubscribeRequest } from "./dist/gen/prelude/bridge/v1/event_service.js";
import { PayloadFormat } from "./dist/gen/prelude/bridge/v1/position.js";

const [address, cases] = process.argv.slice(2);
const request = SubscribeRequest.fromPartial({
  start: { position: { $case: "earliest", value: {} } },
  stop: { position: { $case: "head", value: {} } },
  payloadFormat: PayloadFormat.PAYLOAD_FORMAT_RAW,
});

for (const options of JSON.parse(cases)) {
  const began = performance.now();
  const client = new EventServiceClient(address, credentials.createInsecure(), options);
  const digest = createHash("sha256");
  let events = 0;
  for await (const response of client.subscribe(request)) {
    for (const event of response.events) {
      events += 1;
      digest.update(event.rawJson).update("\n");
    }
  }
  client.close();
  console.log(JSON.stringify({ events, digest: digest.digest("hex"), seconds: (performance.now() - began) / 1000 }));
}
