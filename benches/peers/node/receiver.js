// A receiver that a team would write in an afternoon: it verifies each batch, may append it to a
// file, and streams its events to the subscribers that are there. It keeps no place for anybody and
// drops nothing it has seen before.
//
//     node receiver.js KEY.pem [FILE]

import { constants, createPublicKey, verify } from "node:crypto";
import { once } from "node:events";
import { open, readFile } from "node:fs/promises";
import { createServer } from "node:http";

import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const [keyPath, filePath] = process.argv.slice(2);
const key = {
  key: createPublicKey(await readFile(keyPath)),
  padding: constants.RSA_PKCS1_PSS_PADDING,
  saltLength: constants.RSA_PSS_SALTLEN_AUTO,
};
const file = filePath && (await open(filePath, "a"));
const proto = new URL("../../../proto", import.meta.url).pathname;
const loaded = loadSync("prelude/bridge/v1/event_service.proto", { includeDirs: [proto] });
const { EventService } = grpc.loadPackageDefinition(loaded).prelude.bridge.v1;

const subscribers = new Set();

function subscribe(call) {
  const types = call.request.filter?.types ?? [];
  const subscriber = { call, types: types.length > 0 ? new Set(types) : undefined };
  subscribers.add(subscriber);
  call.on("cancelled", () => subscribers.delete(subscriber));
  call.on("error", () => subscribers.delete(subscriber));
  call.sendMetadata(new grpc.Metadata());
}

// Waits for subscribers whose buffers are full, so that nobody misses anything.
async function publish(event) {
  const waiting = [];
  for (const { call, types } of subscribers) {
    if (types && !types.has(event.type)) continue;
    if (!call.write({ events: [event] })) waiting.push(once(call, "drain"));
  }
  if (waiting.length > 0) await Promise.all(waiting);
}

async function receive(request, response) {
  const pieces = [];
  for await (const piece of request) pieces.push(piece);
  const body = Buffer.concat(pieces);
  const header = request.headers["x-webhook-signature"] ?? "";
  const signature = Buffer.from(header.replace("rsassa-pss-sha256=", ""), "base64url");
  if (!verify("sha256", body, key, signature)) {
    response.writeHead(401).end();
    return;
  }
  const batch = JSON.parse(body);
  if (file) {
    await file.appendFile(body);
    await file.sync();
  }
  if (subscribers.size > 0) {
    for (const item of batch.events) {
      await publish({
        id: item.id,
        type: item.type,
        appId: batch.app_id,
        userId: item.payload.user_id,
        rawJson: Buffer.from(JSON.stringify(item)),
      });
    }
  }
  const answer = JSON.stringify({ accepted: batch.events.length });
  response.writeHead(200, { "content-type": "application/json", "content-length": answer.length });
  response.end(answer);
}

const webhooks = createServer((request, response) => {
  receive(request, response).catch((error) => response.writeHead(503).end(String(error)));
});
webhooks.keepAliveTimeout = 60_000;
webhooks.listen(0, "127.0.0.1");
await once(webhooks, "listening");

const server = new grpc.Server();
server.addService(EventService.service, { subscribe, getRange: (_, done) => done(null, {}) });
server.bindAsync("127.0.0.1:0", grpc.ServerCredentials.createInsecure(), (error, port) => {
  if (error) throw error;
  const ready = {
    message: "ready",
    grpc: `127.0.0.1:${port}`,
    webhook: `127.0.0.1:${webhooks.address().port}`,
  };
  console.log(JSON.stringify(ready));
});
