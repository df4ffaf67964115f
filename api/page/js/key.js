// The API key: asked for when the service wants one, kept in this tab alone.

import { apiKey } from "./api.js";

/** Open the dialog when the service asks for a key; `changed` is called when there is another one. */
export function startKey(changed) {
  const dialog = document.getElementById("key-dialog");
  const button = document.getElementById("key-button");
  const input = document.getElementById("key-input");
  const why = document.getElementById("key-why");
  const usual = why.textContent;

  const open = (text) => {
    why.textContent = text;
    button.hidden = false;
    input.value = "";
    if (!dialog.open) dialog.showModal();
  };
  button.hidden = !apiKey.get();
  button.addEventListener("click", () => open(usual));
  // Several requests are refused at once: one question is enough, and after Cancel none.
  let asked = false;
  window.addEventListener("key-needed", ({ detail }) => {
    button.hidden = false;
    if (asked) return;
    asked = true;
    open(apiKey.get() ? `${detail.problem} Give another one.` : usual);
  });
  dialog.addEventListener("close", () => {
    if (dialog.returnValue === "save" && input.value.trim()) apiKey.set(input.value.trim());
    else if (dialog.returnValue === "forget") apiKey.set(null);
    else return;
    input.value = "";
    asked = false;
    changed();
  });
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    dialog.close("save");
  });
}
