// Reads everything that a bridge has, over gRPC-Web in a headless Chromium; see ../shared.py.
// Usage: browser.mjs ADDRESS CASES, with the cases as a JSON list of objects with `format`, the payload format.

import { createServer } from "node:http";
import { chromium } from "playwright-core";

const [address, cases] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"],
});
const page = await browser.newPage();
// A page of this machine, which the bridge allows without configuration.
const server = createServer((_, response) => response.setHeader("content-type", "text/html").end());
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
await page.goto(`http://127.0.0.1:${server.address().port}/`);
await page.addScriptTag({ path: "dist/reader.js" });
for (const { format } of JSON.parse(cases)) {
  const lines = await page.evaluate(([bridge, format]) => read(bridge, format), [`http://${address}`, format]);
  for (const line of lines) console.log(line);
  console.log(JSON.stringify({ result: { events: lines.length } }));
}
await browser.close();
server.close();
