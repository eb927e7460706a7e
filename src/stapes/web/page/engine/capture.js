/** In the audio thread: hands the microphone's samples over, in blocks. */

const BLOCK = 2048; // samples: 43 ms at 48 kHz
const STARTING = 0.25; // seconds in which a device may begin: what it leaves out is before the sound

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this._held = null;
    this._filled = 0;
    this._first = null;
    this._next = null; // frame at which the next quantum begins, if none is lost
    this.port.onmessage = () => {
      this._send();
      this._ended = true;
      this.port.postMessage({ ended: true });
    };
  }

  process([input]) {
    if (this._ended) return false;
    if (!input.length) return true; // the source gives nothing yet
    const length = input[0].length;
    this._first ??= currentFrame;
    const lost = this._next === null ? 0 : currentFrame - this._next;
    this._next = currentFrame + length;
    if (lost > 0 && currentFrame - this._first > STARTING * sampleRate) {
      this._send();
      this.port.postMessage({ lost });
    }
    this._held ??= input.map(() => new Float32Array(BLOCK));
    this._held.forEach((held, channel) => held.set(input[channel], this._filled));
    this._filled += length;
    if (this._filled + length > BLOCK) this._send();
    return true;
  }

  _send() {
    if (!this._held || !this._filled) return;
    const block = this._held.map((held) => held.slice(0, this._filled));
    this.port.postMessage({ block }, block.map((samples) => samples.buffer));
    this._held = null;
    this._filled = 0;
  }
}

registerProcessor("stapes-capture", Capture);
