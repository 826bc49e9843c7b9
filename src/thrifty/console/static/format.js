// Numbers, times and sizes as people read them.
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const NONE = "–";

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

export function formatCount(value) {
  if (!isNumber(value)) return NONE;
  return Math.abs(value) < 10_000 ? whole.format(value) : compact.format(value);
}

export function formatRate(value) {
  if (!isNumber(value)) return NONE;
  return value < 100 ? plain.format(value) : formatCount(value);
}

export function formatMs(ms) {
  if (!isNumber(ms)) return NONE;
  if (ms < 1) return `${plain.format(ms)} ms`;
  if (ms < 1000) return `${whole.format(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 2 : 1)} s`;
  return formatDuration(ms / 1000);
}

export function formatDuration(seconds) {
  if (!isNumber(seconds)) return NONE;
  if (seconds < 60) return `${whole.format(seconds)} s`;
  if (seconds < 3600) return `${whole.format(seconds / 60)} min`;
  if (seconds < 172_800) return `${plain.format(seconds / 3600)} h`;
  return `${whole.format(seconds / 86_400)} d`;
}

export function formatShare(share, digits = 1) {
  if (!isNumber(share)) return NONE;
  const percent = share * 100;
  return `${percent.toFixed(percent === 0 || percent === 100 ? 0 : digits)}%`;
}

export function formatBytes(bytes) {
  if (!isNumber(bytes)) return NONE;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let value = bytes;
  let place = 0;
  while (value >= 1000 && place < units.length - 1) {
    value /= 1000;
    place += 1;
  }
  return `${value < 10 && place ? value.toFixed(1) : whole.format(value)} ${units[place]}`;
}

export function formatMoney(value) {
  if (!isNumber(value)) return NONE;
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 0.1 || value === 0 ? 2 : 5;
  return value.toFixed(digits);
}

export function formatTime(seconds, { date = true, time = true, second = true } = {}) {
  if (!isNumber(seconds)) return NONE;
  const options = time ? { hour: "2-digit", minute: "2-digit", hourCycle: "h23" } : {};
  if (time && second) options.second = "2-digit";
  if (date) Object.assign(options, { day: "2-digit", month: "short" });
  return new Intl.DateTimeFormat("en-GB", options).format(new Date(seconds * 1000));
}

export function formatAgo(seconds, nowS = Date.now() / 1000) {
  if (!isNumber(seconds)) return NONE;
  const ago = nowS - seconds;
  return ago < 5 ? "just now" : `${formatDuration(ago)} ago`;
}

/** The 95% interval of a share (Wilson's score), as [low, high]. */
export function findInterval(hits, count) {
  if (!count) return [0, 1];
  const z = 1.96;
  const share = hits / count;
  const middle = share + (z * z) / (2 * count);
  const spread = z * Math.sqrt((share * (1 - share)) / count + (z * z) / (4 * count * count));
  const scale = 1 + (z * z) / count;
  return [Math.max(0, (middle - spread) / scale), Math.min(1, (middle + spread) / scale)];
}
