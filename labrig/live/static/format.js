// Numbers and times for people; arrays out of messages.

const PREFIXES = new Map([[-15, "f"], [-12, "p"], [-9, "n"], [-6, "µ"], [-3, "m"], [0, ""], [3, "k"], [6, "M"]]);

/** A factor and a prefixed unit in which `largest` lies between 1 and 1000. */
export function unitFor(largest, unit) {
  const power = largest > 0 ? 3 * Math.floor(Math.log10(largest) / 3) : 0;
  const kept = Math.min(6, Math.max(-15, power));
  return { factor: 10 ** -kept, unit: PREFIXES.get(kept) + unit };
}

/** A quantity with its prefixed unit, such as `12.3 µA`. */
export function quantity(value, unit, digits = 3) {
  if (value === null || !Number.isFinite(value)) return "–";
  const one = unitFor(Math.abs(value), unit);
  return `${number(value * one.factor, digits)} ${one.unit}`;
}

export function number(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  return String(Number(value.toPrecision(digits))).replace("-", "−");
}

export function count(value) {
  return Math.round(value).toLocaleString("en");
}

export function percent(part, digits = 1) {
  return part === null || part === undefined ? "–" : `${(100 * part).toFixed(digits)} %`;
}

export function duration(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  const minutes = Math.round(seconds / 60);
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

export function clockTime(unixSeconds) {
  return new Date(1000 * unixSeconds).toLocaleTimeString("en-GB");
}

/** The numbers of a packed array. */
export function unpack(packed) {
  const text = atob(packed.f32 ?? packed.i16);
  const bytes = new Uint8Array(text.length);
  for (let index = 0; index < text.length; index++) bytes[index] = text.charCodeAt(index);
  return packed.f32 === undefined ? Float32Array.from(new Int16Array(bytes.buffer), (code) => code * packed.scale) : new Float32Array(bytes.buffer);
}

/** The largest size among numbers, those that are not finite left out. */
export function largestOf(values) {
  let largest = 0;
  for (const value of values) if (Number.isFinite(value) && Math.abs(value) > largest) largest = Math.abs(value);
  return largest;
}
