// The page: a form, and the newest events as JSON lines.

import { toJsonString } from "@bufbuild/protobuf";
import { ConnectError } from "@connectrpc/connect";
import { consume, cursorKey, remedy } from "./consumer";
import { EventSchema, type Event } from "./gen/prelude/bridge/v1/event_pb";

const SHOWN_MAX = 500;

const form = document.querySelector("form")!;
const list = document.querySelector("#events")!;
const state = document.querySelector("#state")!;
let running = new AbortController();

function settings() {
  const data = new FormData(form);
  const text = (name: string) => String(data.get(name) ?? "").trim();
  return { bridge: text("bridge"), token: text("token"), types: text("types").split(/[\s,]+/).filter(Boolean) };
}

function tell(text: string): void {
  state.textContent = text;
}

function show(event: Event): void {
  const line = document.createElement("li");
  line.textContent = toJsonString(EventSchema, event);
  list.prepend(line);
  if (list.childElementCount > SHOWN_MAX) list.lastElementChild?.remove();
  document.dispatchEvent(new CustomEvent("bridge-event", { detail: event }));
}

form.addEventListener("submit", async (submit) => {
  submit.preventDefault();
  running.abort();
  running = new AbortController();
  const { signal } = running;
  tell("subscribing");
  try {
    await consume({ ...settings(), process: show, tell, signal });
  } catch (error) {
    tell(remedy(error));
    state.setAttribute("data-code", String(ConnectError.from(error).code));
  }
});

form.querySelector("[name=forget]")!.addEventListener("click", () => {
  localStorage.removeItem(cursorKey(settings()));
});
