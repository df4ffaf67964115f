// The service over HTTP: requests with the key of this tab, refusals as errors, server-sent events.

const KEY = "posteriori-api-key";

export const apiKey = {
  get: () => sessionStorage.getItem(KEY),
  set: (key) => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY)),
};

/** What the service refused, in its own words. Status 0: it does not answer. */
export class Refusal extends Error {
  constructor(status, { code, field = null, problem, fix = "" }) {
    super(`${problem} ${fix}`);
    Object.assign(this, { status, code, field, problem, fix });
  }
}

/** The JSON answer of a route, such as `v1/runs`; throws Refusal. */
export async function call(path, options = {}) {
  const response = await request(path, options);
  return response.json();
}

/** The answer as text; throws Refusal. */
export async function text(path, options = {}) {
  const response = await request(path, options);
  return response.text();
}

/** Server-sent events of a route, as {event, data}; throws Refusal. Ends with the stream or its signal. */
export async function* events(path, options = {}) {
  const response = await request(path, options);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value.replaceAll("\r", "")).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const found = parse(block);
        if (found.data !== "") yield found;
      }
    }
  } catch (cause) {
    throw unreachable(cause);
  } finally {
    await reader.cancel().catch(() => {});  // the stream may be broken already, which was said
  }
}

async function request(path, { method = "GET", body, signal } = {}) {
  const headers = {};
  if (apiKey.get()) headers.Authorization = `Bearer ${apiKey.get()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body: body && JSON.stringify(body), signal });
  } catch (cause) {
    throw unreachable(cause);
  }
  if (response.ok) return response;
  const refusal = await read(response);
  if (refusal.status === 401) window.dispatchEvent(new CustomEvent("key-needed", { detail: refusal }));
  throw refusal;
}

async function read(response) {
  try {
    return new Refusal(response.status, (await response.json()).error);
  } catch {
    const problem = `The service answered ${response.status} ${response.statusText}.`;
    return new Refusal(response.status, { code: "http_error", problem });
  }
}

function unreachable(cause) {
  if (cause.name === "AbortError") return cause;
  const fix = "Check that `posteriori serve` runs.";
  return new Refusal(0, { code: "unreachable", problem: "The service does not answer.", fix });
}

function parse(block) {
  const found = { event: "message", data: "" };
  for (const line of block.split("\n")) {
    const [name, ...value] = line.split(":");
    if (name === "event") found.event = value.join(":").trim();
    if (name === "data") found.data += value.join(":").trim();
  }
  return found;
}
