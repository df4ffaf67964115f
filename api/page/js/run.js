// One run: how it does, its curves, its actors, what happens in it; stop and resume.

import { actors } from "./actors.js";
import { call } from "./api.js";
import { curves } from "./curves.js";
import { el, fill, say } from "./dom.js";
import { count, decimal, percent, rate } from "./format.js";
import { History, smooth } from "./history.js";
import { log } from "./log.js";
import { refused } from "./notice.js";
import { poll } from "./poll.js";
import { badge, LIVE, logZError, progress, worst } from "./state.js";

const SECONDS = 1.5;
const ENDED_SECONDS = 5;
const ROWS_AT_ONCE = 10_000;

export function run(main, given, signal) {
  const name = given.get("run");
  const path = `v1/runs/${encodeURIComponent(name)}`;
  const history = new History();
  const trouble = el("div");
  const refusal = el("div");
  const state = el("span", { role: "status" });
  const far = el("span");
  const sub = el("p", { class: "sub" });
  const stats = el("dl", { class: "panel stats", "aria-label": "Newest metrics" });
  const stop = el("button", { type: "button", hidden: true, onclick: () => ask("stop") }, "Stop");
  const resume = el("button", { type: "button", hidden: true, onclick: () => ask("resume") }, "Resume");
  const crew = actors(name, signal);
  const happened = log(name, signal);
  const drawn = curves(signal);
  const explore = el("a", { class: "button", href: `#/explore?run=${encodeURIComponent(name)}` }, "Explore samples");

  fill(
    main,
    el("div", { class: "head" }, el("h1", {}, name), state, far, el("div", { class: "actions" }, explore, stop, resume), sub),
    el(
      "div",
      { class: "stack" },
      trouble,
      refusal,
      stats,
      drawn.nodes.main,
      el("div", { class: "split" }, crew.node, happened.node),
      drawn.nodes.more,
    ),
  );
  let last = null;
  let complete = false;  // the curves of an ended run do not change

  async function ask(what) {
    fill(refusal);
    try {
      const info = await call(`${path}/${what}`, { method: "POST", signal });
      show(info);
      say(`${name}: ${info.state}`);
    } catch (cause) {
      if (!signal.aborted) fill(refusal, refused(cause));
    }
  }

  function show(info) {
    const live = LIVE.has(info.state);
    if (last?.state !== info.state) fill(state, badge(info.state));
    fill(far, progress(info));
    const text = `${info.model} · adapter version ${info.version} · ${info.problems.join(", ")}`;
    if (sub.textContent !== text) sub.textContent = text;
    stop.hidden = !live;
    stop.disabled = info.state === "stopping";
    resume.hidden = live;
    resume.disabled = info.state === "finished";
    resume.title = resume.disabled ? "All its steps are done." : "From the last checkpoint";
    fill(trouble, info.failure && refused({ problem: info.failure, code: "failed", fix: "Mend the cause, then resume it.", field: null }));
    if (live) crew.live();
    else crew.ended();
    last = info;
  }

  async function read() {
    let rows;
    do {
      rows = await call(`${path}/metrics-history?after=${history.after}&limit=${ROWS_AT_ONCE}`, { signal });
      history.add(rows);
    } while (rows.rows.length === ROWS_AT_ONCE);
  }

  async function look() {
    const info = await call(path, { signal });
    // A run whose registry answers has a number of actors that are wanted.
    const answers = info.desired_actors !== null;
    const live = LIVE.has(info.state);
    show(info);
    if (live || !complete) await read();
    complete = !live;
    drawn.set(history);
    fill(stats, summary(info, history));
    if (!answers) return happened.printed();
    happened.follow();
    crew.set(await call(`${path}/actors`, { signal }), info.version);
  }

  const seconds = () => (complete ? ENDED_SECONDS : SECONDS);
  poll(seconds, signal, async () => {
    try {
      await look();
    } catch (cause) {
      // A run may end between two questions: the next ones are asked of one that is not live.
      if (!signal.aborted && cause.code !== "not_live") fill(trouble, refused(cause));
    }
  });
}

/** Newest numbers; of noisy ones the mean of the last twelve. */
function summary(info, history) {
  const metrics = { ...info.metrics };
  for (const name of ["tv", "log_z", "log_z_exact"])
    for (const x of history.names(name)) metrics[`${name}/${x}`] ??= history.last(`${name}/${x}`);
  for (const x of history.names("log_z")) metrics[`log_z/${x}`] = recent(history, `log_z/${x}`);
  const figures = [
    ["Step", count(info.step), `of ${count(info.steps)}`],
    ["Loss", decimal(recent(history, "loss"))],
    ["TV, worst X", decimal(worst(metrics, "tv"))],
    ["|log Ẑ − log Z|", decimal(logZError(metrics)), "nats"],
    ["ESS of draws", percent(recent(history, "ess"))],
    ["Staleness", decimal(recent(history, "staleness"), 2), "versions"],
    ["Sampled", rate(history.last("samples_per_second")), "/ s"],
    ["Learner idle", percent(history.last("idle_ratio"), 0)],
    ["Actors idle", percent(history.last("actor_idle_ratio"), 0)],
  ];
  if (info.buffer) {
    const { trajectories, payload_bytes, capacity_bytes } = info.buffer;
    figures.push(["Buffer", count(trajectories), `${percent(payload_bytes / capacity_bytes)} full`]);
  }
  return figures.map(([what, value, unit]) => el("div", {}, el("dt", {}, what), el("dd", {}, value, unit && el("small", {}, ` ${unit}`))));
}

function recent(history, name) {
  return smooth(history.column(name)).findLast((value) => value !== null) ?? null;
}
