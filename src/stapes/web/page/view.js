/** Which stretch of time is in view: a scroller whose content is as wide as the recording is long. */

const CLOSEST = 2000; // pixels per second
const ZOOM = 1.6;

/** Zoom and place, shared by the spectrogram, the time axis, the events and the playhead. */
export class TimeView {
  /**
   * @param {HTMLElement} scroller shows a part of the strip, and scrolls as the browser does it
   * @param {HTMLElement} strip
   * @param {() => void} changed called after zoom, place or size have changed
   */
  constructor(scroller, strip, changed) {
    this._scroller = scroller;
    this._strip = strip;
    this._changed = changed;
    this._fitted = true;
    this._growing = false;
    this._following = false; // the end of what grows
    this.duration = 0;
    this.pixelsPerSecond = 100;
    new ResizeObserver(() => this._resized()).observe(scroller);
    scroller.addEventListener("scroll", () => this._scrolled(), { passive: true });
    scroller.addEventListener("wheel", (event) => this._wheel(event), { passive: false });
  }

  /** Pixels. */
  get width() {
    return this._scroller.clientWidth;
  }

  /** Seconds at the left edge. */
  get from() {
    return this._scroller.scrollLeft / this.pixelsPerSecond;
  }

  /** Seconds at the right edge. */
  get to() {
    return this.from + this.width / this.pixelsPerSecond;
  }

  /**
   * Show a whole recording.
   * @param {number} seconds
   */
  open(seconds) {
    this.duration = seconds;
    this._growing = this._following = false;
    this.fit();
  }

  /**
   * Follow sound that grows, with so many of its last seconds in view.
   * @param {number} seconds
   */
  follow(seconds) {
    this.duration = 0;
    this._fitted = false;
    this._growing = this._following = true;
    this.pixelsPerSecond = this.width / seconds;
    this._lay();
  }

  /**
   * The sound has grown.
   * @param {number} seconds it is long now
   */
  grow(seconds) {
    this.duration = seconds;
    this._lay();
  }

  /** Zoom out until the whole recording is in view. */
  fit() {
    this._fitted = true;
    this.pixelsPerSecond = this._widest();
    this._lay();
    this._scroller.scrollLeft = 0;
  }

  /**
   * @param {number} direction 1 closer, -1 away
   * @param {number} [x] pixels from the left edge that stay where they are; none: the middle
   */
  zoom(direction, x = this.width / 2) {
    const moment = this.from + x / this.pixelsPerSecond;
    const least = this._growing ? this.width / 120 : this._widest();
    const wanted = this.pixelsPerSecond * ZOOM ** direction;
    this.pixelsPerSecond = Math.min(Math.max(CLOSEST, least), Math.max(least, wanted));
    this._fitted = !this._growing && this.pixelsPerSecond === least;
    this._lay();
    if (!this._following) this._scroller.scrollLeft = moment * this.pixelsPerSecond - x;
    this._changed();
  }

  /**
   * Scroll so that a stretch is in view, if it is not.
   * @param {number} from seconds
   * @param {number} [to] seconds
   */
  reveal(from, to = from) {
    if (from >= this.from && Math.min(to, from + this.width / this.pixelsPerSecond) <= this.to) {
      return;
    }
    this._scroller.scrollLeft = from * this.pixelsPerSecond - this.width * 0.1;
  }

  /** Pixels per second at which the whole recording is in view. */
  _widest() {
    return this.width / Math.max(this.duration, 0.05);
  }

  _lay() {
    const width = Math.max(this.width, Math.round(this.duration * this.pixelsPerSecond));
    this._strip.style.width = `${width}px`;
    if (this._following) this._scroller.scrollLeft = width;
    this._changed();
  }

  _resized() {
    if (this._fitted) this.pixelsPerSecond = this._widest();
    this._lay();
  }

  _scrolled() {
    if (this._growing) {
      // Sound that grows is followed for as long as its end is in view.
      const { scrollLeft, scrollWidth } = this._scroller;
      this._following = scrollLeft + this.width >= scrollWidth - 4;
    }
    this._changed();
  }

  /** @param {WheelEvent} event */
  _wheel(event) {
    if (!event.ctrlKey) return; // two fingers spread, or the wheel with the control key
    event.preventDefault();
    const x = event.clientX - this._scroller.getBoundingClientRect().left;
    this.zoom(-Math.sign(event.deltaY) * 0.5, x);
  }
}
