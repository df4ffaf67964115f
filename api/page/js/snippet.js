// The request as a command and as a program.

import { apiKey } from "./api.js";
import { el, say } from "./dom.js";

const VARIABLE = "POSTERIORI_API_KEY";

/** For a shell. */
export function curl({ path, body }) {
  const key = apiKey.get() ? ` -H "Authorization: Bearer $${VARIABLE}"` : "";
  const json = JSON.stringify(body).replaceAll("'", `'\\''`);
  return `curl -s ${service()}/${path}${key} \\\n  -H 'Content-Type: application/json' \\\n  -d '${json}'`;
}

/** With the client that comes with posteriori. */
export function python({ path, body }) {
  const key = apiKey.get() ? `, os.environ["${VARIABLE}"]` : "";
  const given = Object.entries(body).map(([name, value]) => `        ${name}=${JSON.stringify(value)},\n`).join("");
  const predictive = path.endsWith("predictive");
  const shown = predictive
    ? "    for answer in found.answers:\n        print(answer.answer, answer.probability, answer.standard_error)"
    : "    print(found.summary)\n    for sample in found.samples[:10]:\n        print(sample.weight, repr(sample.text))";
  return (
    `${key ? "import os\n\n" : ""}from posteriori import Client\n\n` +
    `with Client("${service()}"${key}) as client:\n` +
    `    found = client.${predictive ? "predictive" : "samples"}(\n${given}    )\n${shown}\n`
  );
}

/** A button that copies what `text()` says when it is pressed. */
export function copyButton(label, text) {
  const button = el("button", { type: "button", class: "small", onclick: copy }, label);
  async function copy() {
    const done = await write(text());
    button.textContent = done ? "Copied" : "Could not copy";
    say(button.textContent);
    setTimeout(() => (button.textContent = label), 1500);
  }
  return button;
}

function service() {
  return (location.origin + location.pathname).replace(/\/$/, "");
}

async function write(text) {
  if (navigator.clipboard) {
    return navigator.clipboard.writeText(text).then(() => true, () => false);
  }
  // Without TLS, on another machine than this, browsers have only the old way.
  const area = el("textarea", { class: "unseen", value: text });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}
