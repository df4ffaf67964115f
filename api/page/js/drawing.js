// Samples as they come, what they amount to, and how they group.

import { events, Refusal } from "./api.js";

/**
 * Draw by a stream.
 * @param {(samples: object[]) => void} progress called when more have come
 * @returns {Promise<{samples, end}>} `samples` with their weights, `end` the summary. Throws Refusal.
 */
export async function draw(path, body, signal, progress) {
  const samples = [];
  for await (const { event, data } of events(path, { method: "POST", body: { ...body, stream: true }, signal })) {
    const found = JSON.parse(data);
    if (event === "error") throw new Refusal(503, found.error);
    if (event === "summary") {
      samples.sort((a, b) => a.index - b.index);
      samples.forEach((sample, i) => (sample.weight = found.weights?.[i] ?? null));
      return { samples, end: found };
    }
    samples.push(found);
    progress(samples);
  }
  signal.throwIfAborted();
  throw new Refusal(0, { code: "broken_off", problem: "The stream ended before its summary.", fix: "Ask again." });
}

/** Distinct Z's of the policy's samples and, where there are any, the base LM's beside them. */
export function distinct(policy, base) {
  const found = new Map();
  const at = (sample) => {
    const key = sample.tokens.join();
    if (!found.has(key)) found.set(key, { sample, weight: 0, policy: 0, base: 0, drawn: false });
    return found.get(key);
  };
  for (const sample of policy) {
    const group = at(sample);
    group.drawn = true;
    group.weight += sample.weight ?? 0;
    group.policy += 1 / policy.length;
  }
  for (const sample of base ?? []) at(sample).base += 1 / base.length;
  return [...found.values()];
}

/** Shares of values in equal bins, and the bins' left edges with the last one's right. */
export function histogram(lists, bins = 24) {
  const all = lists.flatMap(({ values }) => values).filter(Number.isFinite);
  if (!all.length) return null;
  let [low, high] = [Math.min(...all), Math.max(...all)];
  if (high - low < 1e-9) [low, high] = [low - 0.5, high + 0.5];
  const width = (high - low) / bins;
  const edges = Array.from({ length: bins + 1 }, (_, i) => low + i * width);
  const columns = lists.map(({ values, weights }) => {
    const shares = new Array(bins + 1).fill(0);
    values.forEach((value, i) => {
      if (Number.isFinite(value)) shares[Math.min(bins - 1, Math.floor((value - low) / width))] += weights[i];
    });
    shares[bins] = shares[bins - 1];
    return shares;
  });
  return [edges, ...columns];
}
