import {
  type CacheHeader,
  HOT_HEADER_BYTES,
  type HotViews,
  joined,
  type PlanJournalEntry,
} from '../../src/cache/persist.ts';
import { type CacheConfig, type CacheReport, DEFAULT_CACHE } from '../../src/cache/policy.ts';
import { EPOCH } from '../../src/core/config.ts';
import type { EngineCache } from '../../src/engine/types.ts';
import { LAYOUT_VERSION } from '../../src/kernels/layout.ts';

/**
 * A cache that has the sizes and versions of a real one and no arithmetic: for measuring how much commits write.
 * SmolLM2-135M's shape: 30 layers, three heads of 64, hence 768 bytes a token and layer in fp16.
 */
export class SizedCache implements EngineCache {
  readonly config: CacheConfig = DEFAULT_CACHE;
  readonly layers = 30;
  position = 0;
  journal: PlanJournalEntry[] = [];
  readonly #ratio: number;
  readonly #changes: boolean;
  /** [layer][segment] position of the plan that last wrote it. */
  #versions: number[][] = Array.from({ length: 30 }, () => []);

  /** @param ratio fp16 bytes over block bytes; @param changes whether each epoch's plan rewrites every block */
  constructor(ratio: number, changes: boolean) {
    this.#ratio = ratio;
    this.#changes = changes;
  }

  feed(tokens: number): void {
    for (let i = 0; i < tokens; i++) {
      this.position++;
      if (this.position % EPOCH !== 0 || this.position === EPOCH) continue;
      for (const layer of this.#versions) {
        if (this.#changes) layer.fill(this.position);
        layer.push(this.position);
      }
      // A tier takes four bits; a plan names those that changed, about one in ten.
      const bytes = new Uint8Array(this.#changes ? (30 * 3 * this.position) / 20 : 0).fill(
        this.position & 0xff,
      );
      if (this.#changes) this.journal.push({ position: this.position, bytes });
    }
  }

  get header(): CacheHeader {
    return {
      layoutVersion: LAYOUT_VERSION,
      numerics: 'sized',
      model: 'sized',
      config: this.config,
      position: this.position,
      segments: this.#versions[0]!.length,
      peakBytes: 0,
      recodes: 0,
    };
  }
  readonly pinned = 0;
  readonly exactStride = 768;
  exactFrom(): number {
    return this.header.segments * EPOCH;
  }
  /** One plane of exact tokens, and 12 bytes of mass for every position. */
  hotViews(layer: number): HotViews {
    const slots = this.position - this.exactFrom();
    const header = new Uint8Array(HOT_HEADER_BYTES);
    new DataView(header.buffer).setUint32(0, slots, true);
    const mass = new Uint8Array(this.#changes ? this.position * 12 : 0).fill(layer + this.position);
    return { header, planes: [new Uint8Array(slots * this.exactStride).fill(layer)], rest: [mass] };
  }
  hot(layer: number): Uint8Array {
    return joined(this.hotViews(layer));
  }
  blockView(layer: number, segment: number): Uint8Array {
    return this.block(layer, segment);
  }
  block(layer: number, segment: number): Uint8Array {
    return new Uint8Array(this.blockBytes(layer, segment)).fill(this.blockVersion(layer, segment) + segment);
  }
  /** Everything over the budget's first 1,024 tokens is held the more coarsely, the longer the conversation. */
  blockBytes(_layer: number, segment: number): number {
    const ratio = this.#changes
      ? Math.max(1, (this.position * this.#ratio) / Math.max(this.position, 1_024))
      : 1;
    return Math.round((EPOCH * 768) / ratio) + (segment % 3) * 16;
  }
  blockVersion(layer: number, segment: number): number {
    return this.#versions[layer]![segment]!;
  }
  segmentsOf(): number {
    return this.header.segments;
  }
  completePlan(): undefined {}
  clearJournal(): void {
    this.journal = [];
  }
  get bytes(): number {
    return 0;
  }
  report(): CacheReport {
    return {
      policy: 'sized',
      tokens: this.position,
      bytes: 1,
      fp16Bytes: 1,
      ratio: 1,
      peakBytes: 1,
      tiers: {},
      tierBytes: {},
    };
  }
  dispose(): void {}
}
