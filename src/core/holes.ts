/** Classes of size to a doubling. */
const STEPS = 4;
/** Holes of a class that are looked at: those of the next one fit all. */
const LOOKS = 16;
const classOf = (bytes: number): number => Math.floor(Math.log2(bytes) * STEPS);

/** Free places between live blocks; neighbours are one. The oldest that fits is taken first: what lay there is the least likely to be read still. */
export class Holes {
  readonly #bytes = new Map<number, number>();
  /** Start by end. */
  readonly #starts = new Map<number, number>();
  readonly #classes: Set<number>[] = [];

  /** @returns where the hole begins that the place has become a part of */
  add(offset: number, bytes: number): number {
    let from = offset;
    let end = offset + bytes;
    const before = this.#starts.get(from);
    if (before !== undefined) {
      this.#remove(before);
      from = before;
    }
    const after = this.#bytes.get(end);
    if (after !== undefined) {
      this.#remove(end);
      end += after;
    }
    this.#put(from, end - from);
    return from;
  }

  /** The start of a place of so many bytes, which is no hole any longer. */
  take(bytes: number): number | undefined {
    const first = classOf(bytes);
    for (let c = first; c < this.#classes.length; c++) {
      let looks = 0;
      for (const start of this.#classes[c] ?? []) {
        const held = this.#bytes.get(start)!;
        if (held >= bytes) {
          this.#remove(start);
          if (held > bytes) this.#put(start + bytes, held - bytes);
          return start;
        }
        if (++looks === LOOKS) break;
      }
    }
    return undefined;
  }

  /** Forgets the hole that begins there: it lies at the end of all blocks. */
  drop(start: number): void {
    this.#remove(start);
  }
  clear(): void {
    this.#bytes.clear();
    this.#starts.clear();
    this.#classes.length = 0;
  }

  #put(start: number, bytes: number): void {
    this.#bytes.set(start, bytes);
    this.#starts.set(start + bytes, start);
    const c = classOf(bytes);
    (this.#classes[c] ??= new Set()).add(start);
  }
  #remove(start: number): void {
    const bytes = this.#bytes.get(start)!;
    this.#bytes.delete(start);
    this.#starts.delete(start + bytes);
    this.#classes[classOf(bytes)]!.delete(start);
  }
}
