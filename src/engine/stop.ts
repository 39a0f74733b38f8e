/**
 * Finds stop strings across token borders: text that could still become one is held back.
 * `push` returns what is certain; after a match `stopped` is true and the text before the match is all there is.
 */
export class StopFilter {
  readonly #stops: readonly string[];
  #held = '';
  stopped = false;

  constructor(stops: readonly string[]) {
    this.#stops = stops.filter((s) => s.length > 0);
  }

  push(text: string): string {
    if (this.stopped) return '';
    this.#held += text;
    let first = -1;
    for (const stop of this.#stops) {
      const at = this.#held.indexOf(stop);
      if (at >= 0 && (first < 0 || at < first)) first = at;
    }
    if (first >= 0) {
      this.stopped = true;
      const out = this.#held.slice(0, first);
      this.#held = '';
      return out;
    }
    let keep = 0;
    for (const stop of this.#stops)
      for (let n = Math.min(stop.length - 1, this.#held.length); n > keep; n--)
        if (this.#held.endsWith(stop.slice(0, n))) keep = n;
    const out = this.#held.slice(0, this.#held.length - keep);
    this.#held = this.#held.slice(this.#held.length - keep);
    return out;
  }

  /** What was held back and is text after all. */
  end(): string {
    const out = this.stopped ? '' : this.#held;
    this.#held = '';
    return out;
  }
}
