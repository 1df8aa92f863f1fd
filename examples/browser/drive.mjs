// Drives the page in a headless Chromium, as if it were a consumer of the other languages: same
// flags, JSON lines on stdout, same exit codes. For examples/run-interop; nothing of it is needed
// to use the page. CHROMIUM names the browser if it is not at /usr/bin/chromium.

import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { chromium } from "playwright-core";

const INVALID_ARGUMENT = "3";
// The page's files are handed to the browser without a server. The origin is one of this machine,
// which the bridge allows without configuration.
const ORIGIN = "http://localhost:8000";

const { values: flags } = parseArgs({
  options: {
    type: { type: "string", multiple: true, default: [] },
    "cursor-file": { type: "string", default: "consumer.cursor" },
  },
});
const bridge = `http://${process.env.BRIDGE_ADDRESS || "127.0.0.1:50051"}`;
const types = flags.type.join(" ");
const key = `cursor ${bridge} ${types}`;
const file = flags["cursor-file"];

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    .concat(["--disable-background-networking", "--disable-component-update", "--disable-sync"]),
  handleSIGTERM: false,
});
const page = await browser.newPage();
page.on("pageerror", (error) => console.error(error.message));

async function end(code) {
  const cursor = await page.evaluate((key) => localStorage.getItem(key), key);
  if (cursor) {
    writeFileSync(`${file}.new`, `${cursor}\n`);
    renameSync(`${file}.new`, file);
  }
  await browser.close();
  process.exit(code);
}
process.once("SIGTERM", () => end(0));

await page.route(`${ORIGIN}/**`, (route) => {
  const name = new URL(route.request().url()).pathname.slice(1) || "index.html";
  const path = new URL(`dist/${name}`, import.meta.url).pathname;
  return existsSync(path) ? route.fulfill({ path }) : route.fulfill({ status: 404 });
});
// What the page shows and says, in order.
await page.exposeFunction("printLine", (line) => process.stdout.write(`${line}\n`));
await page.exposeFunction("say", (text) => console.error(text));
await page.goto(ORIGIN);
await page.evaluate(
  ([key, cursor]) => {
    if (cursor) localStorage.setItem(key, cursor);
    const shown = new MutationObserver((changes) => {
      for (const { addedNodes } of changes) for (const node of addedNodes) window.printLine(node.textContent);
    });
    shown.observe(document.querySelector("#events"), { childList: true });
    const state = document.querySelector("#state");
    new MutationObserver(() => window.say(state.textContent)).observe(state, { childList: true });
  },
  [key, existsSync(file) ? readFileSync(file, "utf8").trim() : ""],
);
await page.fill("[name=bridge]", bridge);
await page.fill("[name=types]", types);
await page.click("text=Subscribe");
await page.waitForSelector("#state[data-code]", { timeout: 0, state: "attached" });
await end((await page.getAttribute("#state", "data-code")) === INVALID_ARGUMENT ? 2 : 1);
