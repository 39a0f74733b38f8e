import type { KvCache } from '../cache/cache.ts';
import type { BlockId } from '../core/arena.ts';
import { floatToHalf } from '../core/half.ts';
import { tierGroups } from '../kernels/cache-math.ts';
import { recordCounts, SEGMENT_HEADER_BYTES, SEGMENT_TOKENS, tierNamed } from '../kernels/layout.ts';

/** What a probe does to one head's old tokens. Keys and values are taken from the coarsest tier that codes them with 2 bits. */
export type Harm = 'keys' | 'values' | 'drop';

const FINE = tierNamed('f16');
const COARSE = tierNamed('2,2');

/**
 * Damages the segment records of one head of a cache under policy `full`, in place, and mends them again, bit for bit. Feeding tokens in between
 * shows what that head's old keys or values are worth. Sinks and window stay as they are.
 */
export class HeadProbe {
  readonly #cache: KvCache;
  readonly #position: number;
  readonly #scratch: BlockId;
  readonly #tiersAt: number;
  readonly #keysAt: number;
  readonly #valuesAt: number;
  #saved: { readonly block: BlockId; readonly at: number; readonly bytes: Uint8Array }[] = [];

  constructor(cache: KvCache) {
    if (cache.config.policy !== 'full' || cache.config.exactBits !== 16)
      throw new Error('a probe wants a cache of policy full in f16');
    this.#cache = cache;
    this.#position = cache.position;
    const { headDim } = cache.context.model;
    const floats = SEGMENT_TOKENS * headDim * 4;
    // A record never takes more than its tokens in float32; then tiers, keys and values.
    this.#tiersAt = 2 * floats + 4096;
    this.#keysAt = this.#tiersAt + SEGMENT_TOKENS;
    this.#valuesAt = this.#keysAt + floats;
    this.#scratch = cache.context.kernels.arena.alloc(this.#valuesAt + floats, 'a head probe');
  }

  damage(layer: number, kvHead: number, harm: Harm): void {
    const cache = this.#cache;
    const { kernels, model } = cache.context;
    const { headDim } = model;
    const { arena } = kernels;
    if (!kernels.decodeRecord) throw new Error('a probe wants kernels in host memory');
    for (const [s, { id }] of cache.blocks[layer]!.entries()) {
      const { tokens } = cache.spans[s]!;
      const reader = cache.reader({ id, version: 0 });
      const at = reader.recordAt(kvHead);
      const end = kvHead + 1 < model.kvHeads ? reader.recordAt(kvHead + 1) : reader.storedBytes;
      const save = (from: number, to: number): void => {
        this.#saved.push({ block: id, at: from, bytes: arena.bytes(id).slice(from, to) });
      };
      if (harm === 'drop') {
        // A head whose record lies nowhere has no cell.
        const place = SEGMENT_HEADER_BYTES + kvHead * 4;
        save(place, place + 4);
        arena.bytes(id).fill(0, place, place + 4);
        continue;
      }
      save(at, end);
      const record = arena.ptr(id) + at;
      const scratch = arena.ptr(this.#scratch);
      const memory = (): ArrayBuffer => arena.memory.buffer;
      new Uint8Array(memory(), scratch + this.#tiersAt, tokens).fill(COARSE);
      kernels.recodeRecord(record, tokens, headDim, scratch + this.#tiersAt, scratch, 0, 0);
      kernels.decodeRecord(scratch, tokens, headDim, scratch + this.#keysAt, scratch + this.#valuesAt);
      const group = tierGroups(recordCounts(new Uint8Array(memory()), record), tokens, headDim)[0]!;
      if (group.id !== FINE) throw new Error('a probe wants records in f16');
      const from = scratch + (harm === 'keys' ? this.#keysAt : this.#valuesAt);
      const decoded = new Float32Array(memory(), from, tokens * headDim);
      const held = new Uint16Array(memory(), record + (harm === 'keys' ? group.k : group.v), decoded.length);
      for (let i = 0; i < decoded.length; i++) held[i] = floatToHalf(decoded[i]!);
    }
  }

  /** Everything as it was, and the cache back at the position where the probe was made. */
  mend(): void {
    const { arena } = this.#cache.context.kernels;
    for (const { block, at, bytes } of this.#saved) arena.bytes(block).set(bytes, at);
    this.#saved = [];
    // Within the epoch nothing but the exact part's slots was written: they are appended anew.
    this.#cache.position = this.#position;
  }

  dispose(): void {
    this.#cache.context.kernels.arena.free(this.#scratch);
  }
}
