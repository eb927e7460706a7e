/** Plays stretches of a recording with Web Audio. */

/** @typedef {{sampleRate: number, channels: Float32Array[], duration: number}} Recording */

const CHUNK = 15; // seconds that are copied at once: an hour is not held twice
const AHEAD = 4; // seconds before a chunk ends that the next one is made ready
const LEAD = 0.06; // seconds between the wish and the first sample
const FADE = 0.004; // at both ends, so that a cut does not click

export class Player {
  /**
   * @param {() => void} changed called when playing begins or ends
   * @param {(sentence: string) => void} failed called when a recording cannot be played
   */
  constructor(changed, failed) {
    this._changed = changed;
    this._failed = failed;
    /** @type {Recording | null} */
    this._recording = null;
    /** @type {AudioContext | null} */
    this._context = null;
    /** @type {{from: number, to: number, begins: number, gain: GainNode, timer: number} | null} */
    this._run = null;
    this._wish = 0; // counts what was asked for: only the last is played
    this._refused = 0; // Hz that this browser cannot play at
  }

  /** @param {Recording | null} recording to play from now on */
  load(recording) {
    if (recording === this._recording) return;
    this.stop();
    this._recording = recording;
  }

  get playing() {
    return this._run !== null;
  }

  /** Seconds of the recording that are heard now; none while nothing is. */
  get position() {
    const run = this._run;
    if (!run || !this._context) return null;
    const late = this._context.outputLatency || 0;
    const at = run.from + this._context.currentTime - late - run.begins;
    return Math.min(run.to, Math.max(run.from, at));
  }

  /**
   * Play a stretch, and stop what was played.
   * @param {number} from seconds
   * @param {number} to seconds
   */
  async play(from, to) {
    const recording = this._recording;
    this._end();
    if (!recording || to <= from) return;
    const wish = ++this._wish;
    const context = this._at(recording.sampleRate);
    await context.resume();
    if (wish !== this._wish) return; // another stretch was wished for meanwhile
    const gain = context.createGain();
    gain.connect(context.destination);
    const begins = context.currentTime + LEAD;
    const ends = begins + to - from;
    gain.gain.setValueAtTime(0, begins);
    gain.gain.linearRampToValueAtTime(1, begins + FADE);
    gain.gain.setValueAtTime(1, Math.max(begins + FADE, ends - FADE));
    gain.gain.linearRampToValueAtTime(0, ends);
    this._run = { from, to, begins, gain, timer: 0 };
    try {
      this._schedule(from);
    } catch {
      this._end();
      this._failed("This browser cannot play a recording of this rate or number of channels.");
    }
    this._changed();
  }

  stop() {
    this._wish++;
    if (!this._run) return;
    this._end();
    this._changed();
  }

  /**
   * Hand over the chunk that begins at a moment of the recording, and come back for the next.
   * @param {number} from seconds
   */
  _schedule(from) {
    const [run, recording, context] = [this._run, this._recording, this._context];
    if (!run || !recording || !context) return;
    const rate = recording.sampleRate;
    const to = Math.min(run.to, from + CHUNK);
    const [first, last] = [Math.round(from * rate), Math.round(to * rate)];
    const buffer = context.createBuffer(recording.channels.length, Math.max(1, last - first), rate);
    recording.channels.forEach((channel, i) => {
      buffer.copyToChannel(/** @type {any} */ (channel.subarray(first, last)), i);
    });
    const source = context.createBufferSource();
    source.buffer = buffer;
    source.connect(run.gain);
    source.start(run.begins + (first / rate - run.from));
    if (to < run.to) {
      const wait = run.begins + (to - run.from) - context.currentTime - AHEAD;
      run.timer = window.setTimeout(() => this._schedule(to), Math.max(0, 1000 * wait));
    } else {
      source.onended = () => {
        if (this._run === run) this.stop();
      };
    }
  }

  _end() {
    const run = this._run;
    this._run = null;
    if (!run || !this._context) return;
    clearTimeout(run.timer);
    const now = this._context.currentTime;
    run.gain.gain.cancelScheduledValues(now);
    run.gain.gain.setTargetAtTime(0, now, FADE);
    window.setTimeout(() => run.gain.disconnect(), 60);
  }

  /**
   * A context at the recording's own rate, where the browser can: chunks then meet without a seam.
   * @param {number} rate Hz
   */
  _at(rate) {
    if (this._context?.sampleRate === rate || (this._context && this._refused === rate)) {
      return this._context;
    }
    void this._context?.close();
    try {
      this._context = new AudioContext({ sampleRate: rate });
    } catch {
      this._refused = rate;
      this._context = new AudioContext();
    }
    return this._context;
  }
}
