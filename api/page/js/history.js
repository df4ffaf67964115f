// The metrics of a run by step, as columns for charts.

/** Rows of the service in order of steps. A run that was resumed repeats steps: the newer ones count. */
export class History {
  rows = [];
  after = "0-0";

  /** Add an answer of `/metrics-history`. */
  add({ rows, next_after }) {
    for (const row of rows) {
      while (this.rows.length && this.rows.at(-1).step > row.step) this.rows.pop();
      const last = this.rows.at(-1);
      // An evaluation has a row of its own beside that of its step.
      if (last?.step === row.step) Object.assign(last.metrics, row.metrics);
      else this.rows.push({ step: row.step, seconds: row.unix_seconds, metrics: { ...row.metrics } });
    }
    this.after = next_after;
  }

  /** Steps, or minutes since the first row. */
  x(kind) {
    const began = this.rows[0]?.seconds ?? 0;
    return this.rows.map((row) => (kind === "time" ? (row.seconds - began) / 60 : row.step));
  }

  /** A metric in every row, null where it was not recorded. */
  column(name) {
    return this.rows.map((row) => row.metrics[name] ?? null);
  }

  /** The newest value of a metric. */
  last(name) {
    for (let i = this.rows.length - 1; i >= 0; i--) {
      const value = this.rows[i].metrics[name];
      if (value !== null && value !== undefined) return value;
    }
    return null;
  }

  /** What stands after `prefix/` in the names of metrics: X's, those with an oracle first seen first. */
  names(prefix) {
    const found = new Set();
    for (const row of this.rows)
      for (const name in row.metrics) if (name.startsWith(`${prefix}/`)) found.add(name.slice(prefix.length + 1));
    return [...found];
  }

  /** Trajectories that the learner took in a second, between a step and the one before. */
  learned() {
    return this.rows.map((row, i) => {
      const passed = i ? row.seconds - this.rows[i - 1].seconds : 0;
      return passed > 0 && row.metrics.trajectories ? row.metrics.trajectories / passed : null;
    });
  }
}

/** An exponential moving average over about `span` values, without the bias of its start. */
export function smooth(column, span = 12) {
  const keep = 1 - 1 / span;
  let sum = 0;
  let weight = 0;
  return column.map((value) => {
    if (value === null) return null;
    sum = keep * sum + value;
    weight = keep * weight + 1;
    return sum / weight;
  });
}
