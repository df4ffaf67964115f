// What went wrong, or is to be wary of, where it happened.

import { el } from "./dom.js";

/** A refusal: problem, field and fix. */
export function refused(refusal) {
  if (!("problem" in refusal)) throw refusal;
  const field = refusal.field ? el("span", { class: "code" }, refusal.field) : null;
  return el(
    "div",
    { class: "notice", role: "alert" },
    el("div", {}, el("strong", {}, refusal.problem), field),
    refusal.fix && el("div", { class: "fix" }, refusal.fix),
  );
}

/** A warning of an answer. */
export function warned({ code, message }) {
  return el("div", { class: "notice warn", role: "status" }, message, el("span", { class: "code" }, code));
}

/** Nothing to show, and what to do about it. */
export function empty(text, command) {
  return el("div", { class: "empty" }, el("p", {}, text), command && el("code", {}, command));
}
