/**
 * @param {Float32Array[]} parts
 * @returns {Float32Array} one after the other, a copy
 */
export function joined(parts) {
  const whole = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
