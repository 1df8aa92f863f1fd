// Drives the page in a headless Chromium, as if it were a consumer of the other languages: same
// flags, JSON lines on stdout, same exit codes. For examples/run-interop; nothing of it is needed
// to use the page. CHROMIUM names the browser if it is not at /usr/bin/chromium.

import { createHash, X509Certificate } from "node:crypto";
import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { parseArgs } from "node:util";
import { chromium } from "playwright-core";

// The exit codes of the other consumers, by the code of the error.
const EXIT_CODES = { 3: 2, 7: 4, 8: 2, 11: 5, 16: 4 };

const { values: flags } = parseArgs({
  options: {
    type: { type: "string", multiple: true, default: [] },
    "cursor-file": { type: "string", default: "consumer.cursor" },
  },
});
const ca = process.env.BRIDGE_CA;
const bridge = `${ca ? "https" : "http"}://${process.env.BRIDGE_ADDRESS || "127.0.0.1:50051"}`;
const types = flags.type.join(" ");
const key = `cursor ${bridge} ${types}`;
const file = flags["cursor-file"];

// A browser takes its CAs from the system. This one is to trust the key of one authority instead.
const trusted = ca && new X509Certificate(readFileSync(ca)).publicKey.export({ type: "spki", format: "der" });
const trust = trusted ? [createHash("sha256").update(trusted).digest("base64")] : [];

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    .concat(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
    .concat(trust.map((key) => `--ignore-certificate-errors-spki-list=${key}`)),
  handleSIGTERM: false,
});
const page = await browser.newPage();
page.on("pageerror", (error) => console.error(error.message));

let isEnding = false;
async function end(code) {
  isEnding = true;
  const cursor = await page.evaluate((key) => localStorage.getItem(key), key);
  if (cursor) {
    writeFileSync(`${file}.new`, `${cursor}\n`);
    renameSync(`${file}.new`, file);
  }
  await browser.close();
  process.exit(code);
}
process.once("SIGTERM", () => end(0));

// Pages of this machine are allowed by the bridge without configuration.
const server = createServer((request, response) => {
  const name = request.url === "/" ? "index.html" : request.url.slice(1);
  const types = { "index.html": "text/html", "page.js": "text/javascript" };
  response.writeHead(types[name] ? 200 : 404, { "content-type": types[name] ?? "text/plain" });
  response.end(types[name] && readFileSync(new URL(`dist/${name}`, import.meta.url)));
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
// What the page shows and says, in order.
await page.exposeFunction("printLines", (lines) => process.stdout.write(lines));
await page.exposeFunction("say", (text) => console.error(text));
await page.goto(`http://127.0.0.1:${server.address().port}/`);
await page.evaluate(
  ([key, cursor]) => {
    if (cursor) localStorage.setItem(key, cursor);
    const shown = new MutationObserver((changes) => {
      window.printLines(changes.flatMap(({ addedNodes }) => [...addedNodes].map((node) => `${node.textContent}\n`)).join(""));
    });
    shown.observe(document.querySelector("#events"), { childList: true });
    const state = document.querySelector("#state");
    new MutationObserver(() => window.say(state.textContent)).observe(state, { childList: true });
  },
  [key, existsSync(file) ? readFileSync(file, "utf8").trim() : ""],
);
await page.fill("[name=bridge]", bridge);
await page.fill("[name=types]", types);
await page.fill("[name=token]", process.env.BRIDGE_TOKEN ?? "");
await page.click("text=Subscribe");
// Rejects when SIGTERM closes the browser, and then `end` is on its way.
const failed = page.waitForSelector("#state[data-code]", { timeout: 0, state: "attached" });
await failed.then(
  async (state) => end(EXIT_CODES[await state.getAttribute("data-code")] ?? 1),
  (error) => { if (!isEnding) throw error; },
);
