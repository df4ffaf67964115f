// Numbers as people read them. Unknown is an en dash; minus is a minus sign.

export const UNKNOWN = "–";

/** With so many decimals, or in powers of ten where that would show none of it. */
export function decimal(value, decimals = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return UNKNOWN;
  const least = 10 ** -decimals / 2;
  if (value !== 0 && Math.abs(value) < least) return minus(value.toExponential(1).replace("e", "e"));
  if (Math.abs(value) >= 1e6) return minus(value.toExponential(2));
  const shown = Math.abs(value) >= 1000 ? 0 : Math.abs(value) >= 100 ? Math.min(decimals, 1) : decimals;
  return minus(value.toLocaleString("en", { minimumFractionDigits: shown, maximumFractionDigits: shown }));
}

/** For axes and readouts: as many figures as are significant. */
export function brief(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return UNKNOWN;
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return minus(value.toExponential(1).replace(".0e", "e"));
  return minus(Number(value.toPrecision(size >= 1000 ? 5 : 4)).toString());
}

export function count(value) {
  return value === null || value === undefined ? UNKNOWN : minus(Math.round(value).toLocaleString("en"));
}

export function percent(share, decimals = 1) {
  if (share === null || share === undefined || !Number.isFinite(share)) return UNKNOWN;
  return `${(share * 100).toFixed(decimals)} %`;
}

export function rate(perSecond) {
  if (perSecond === null || perSecond === undefined) return UNKNOWN;
  return decimal(perSecond, perSecond < 10 ? 1 : 0);
}

export function seconds(value) {
  if (value === null || value === undefined) return UNKNOWN;
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 120) return `${Math.round(value)} s`;
  return value < 7200 ? `${Math.round(value / 60)} min` : `${(value / 3600).toFixed(1)} h`;
}

export function clock(unixSeconds) {
  return new Date(unixSeconds * 1000).toLocaleTimeString("en-GB");
}

function minus(text) {
  return text.replaceAll("-", "−");
}
