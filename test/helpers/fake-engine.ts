import {
  type CacheHeader,
  type CacheStateReader,
  HOT_HEADER_BYTES,
  type HotViews,
  joined,
  type PlanJournalEntry,
} from '../../src/cache/persist.ts';
import type { CacheConfig, CacheReport } from '../../src/cache/policy.ts';
import { EPOCH, type ModelConfig } from '../../src/core/config.ts';
import { AbortedError, CorruptDataError, MemoryLimitError } from '../../src/core/errors.ts';
import { TokenOrder } from '../../src/engine/token-order.ts';
import type { ChatTemplate, Engine, EngineCache, RunOptions, Tokenizer } from '../../src/engine/types.ts';
import { LAYOUT_VERSION } from '../../src/kernels/layout.ts';

/**
 * An engine without a model, whose cache obeys the contracts of the real one: its state is a pure function of the ids before its
 * position; blocks appear at epochs and are rewritten by plans; plans are pure functions of stored bytes and are journalled; every
 * logit depends on the bytes of blocks and hot parts, so that a wrong byte anywhere changes what is said.
 */
export interface FakeOptions {
  readonly layers?: number;
  /** Bytes of one token in a new block, and exact (twice as many), per layer. */
  readonly tokenBytes?: number;
  /** Bytes of attention mass in the hot part for each compressed position, per layer. */
  readonly massBytes?: number;
  readonly contextLength?: number;
  readonly numerics?: string;
  readonly fingerprint?: string;
  /** Kernel bytes for all caches. */
  readonly memoryBytes?: number;
  /** Called before each slice of at most 16 positions. */
  readonly onSlice?: (cache: FakeCache) => void;
}

const WINDOW = 64;
/** Blocks shrink slowly, so that plans go on changing old ones. */
const LAST_LEVEL = 30;

const mix = (h: number, x: number): number => {
  let y = Math.imul(h ^ x, 0x9e3779b1);
  y = Math.imul(y ^ (y >>> 15), 0x85ebca6b);
  return (y ^ (y >>> 13)) >>> 0;
};

interface Block {
  level: number;
  version: number;
  bytes: Uint8Array;
}

interface Layer {
  hash: number;
  /** Exact tokens: positions of the window and of the epoch that is not compressed yet. */
  exact: Uint8Array[];
  blocks: Block[];
  /** One word for each segment: attention mass, in a way. */
  mass: number[];
}

/** What a plan does to a block: pure, and impossible to undo. */
function recode(block: Block, level: number, position: number): Block {
  const keep = Math.ceil((block.bytes.length * (LAST_LEVEL + 2 - level)) / (LAST_LEVEL + 2 - block.level));
  const bytes = new Uint8Array(keep);
  for (let i = 0; i < keep; i++) bytes[i] = mix(block.bytes[i]! + level, i) & 0xff;
  return { level, version: position, bytes };
}

export class FakeCache implements EngineCache {
  readonly engine: FakeEngine;
  readonly config: CacheConfig;
  position = 0;
  peakBytes = 0;
  recodes = 0;
  journal: PlanJournalEntry[] = [];
  disposed = false;
  state: Layer[];

  constructor(engine: FakeEngine, config: CacheConfig) {
    this.engine = engine;
    this.config = config;
    this.state = Array.from({ length: engine.layers }, (_, l) => ({
      hash: mix(config.seed, l),
      exact: [],
      blocks: [],
      mass: [],
    }));
    engine.live.add(this);
  }

  get layers(): number {
    return this.engine.layers;
  }
  get header(): CacheHeader {
    return {
      layoutVersion: LAYOUT_VERSION,
      numerics: this.engine.numerics,
      model: this.engine.fingerprint,
      config: this.config,
      position: this.position,
      segments: this.state[0]!.blocks.length,
      peakBytes: this.peakBytes,
      recodes: this.recodes,
    };
  }
  get bytes(): number {
    if (this.disposed) return 0;
    let bytes = 0;
    for (let l = 0; l < this.layers; l++) {
      const layer = this.state[l]!;
      bytes += 16 + layer.exact.length * this.engine.tokenBytes * 2 + layer.mass.length * 4;
      for (const block of layer.blocks) bytes += block.bytes.length;
    }
    return bytes;
  }

  /** Takes one id in. */
  feedOne(id: number): void {
    if (this.disposed) throw new Error('used after dispose');
    let below = id;
    for (const layer of this.state) {
      // "Attention": every block and the exact part are read, one byte each.
      let h = mix(layer.hash, below);
      for (const [s, block] of layer.blocks.entries()) {
        const seen = block.bytes[h % block.bytes.length]!;
        h = mix(h, seen + s);
        layer.mass[s] = (layer.mass[s]! + (h & 0xff)) >>> 0;
      }
      for (const token of layer.exact) h = mix(h, token[h % token.length]!);
      layer.hash = h;
      const token = new Uint8Array(this.engine.tokenBytes * 2);
      for (let i = 0; i < token.length; i++) token[i] = mix(h, i);
      layer.exact.push(token);
      below = h;
    }
    this.position++;
    if (this.position % EPOCH === 0) this.#epoch();
    this.peakBytes = Math.max(this.peakBytes, this.bytes);
  }

  #epoch(): void {
    if (this.position >= EPOCH + WINDOW)
      for (const layer of this.state) {
        const leaving = layer.exact.splice(0, Math.min(EPOCH, layer.exact.length - WINDOW));
        const bytes = new Uint8Array(leaving.length * this.engine.tokenBytes);
        for (const [i, token] of leaving.entries())
          bytes.set(token.subarray(0, this.engine.tokenBytes), i * this.engine.tokenBytes);
        layer.blocks.push({ level: 0, version: this.position, bytes });
        layer.mass.push(0);
      }
    if (this.config.policy === 'full') return;
    // The plan: two of three old blocks with little mass go one level down. Then mass decays.
    const changes: number[] = [];
    this.state.forEach((layer, l) => {
      for (let s = 0; s < layer.blocks.length - 1; s++) {
        const { level } = layer.blocks[s]!;
        if (level < LAST_LEVEL && mix(layer.mass[s]!, s) % 3 > 0) changes.push(l, s, level + 1);
      }
    });
    const bytes = new Uint8Array(new Uint32Array(changes).buffer);
    this.journal = [...this.journal, { position: this.position, bytes }];
    this.apply(this.position, bytes);
    for (const layer of this.state) layer.mass = layer.mass.map((m) => Math.floor(m * 0.8));
  }

  apply(position: number, bytes: Uint8Array): void {
    const words = new Uint32Array(bytes.slice().buffer);
    for (let i = 0; i < words.length; i += 3) {
      const layer = this.state[words[i]!]!;
      const block = layer.blocks[words[i + 1]!];
      // As in the real cache: a block that was stored later has the plan in its bytes.
      if (!block || block.version >= position) continue;
      layer.blocks[words[i + 1]!] = recode(block, words[i + 2]!, position);
      this.recodes++;
    }
  }

  readonly pinned = 0;
  get exactStride(): number {
    return this.engine.tokenBytes * 2;
  }
  exactFrom(l: number): number {
    return this.position - this.state[l]!.exact.length;
  }
  hotViews(l: number): HotViews {
    const { hash, exact, mass } = this.state[l]!;
    const header = new Uint8Array(HOT_HEADER_BYTES);
    const view = new DataView(header.buffer);
    view.setUint32(0, exact.length, true);
    view.setUint32(4, hash, true);
    view.setUint32(8, mass.length, true);
    const plane = new Uint8Array(exact.length * this.exactStride);
    for (const [i, token] of exact.entries()) plane.set(token, i * this.exactStride);
    // The bulk of mass is not modelled, but it changes with every token as the real one does, and is checked.
    const bulk = new Uint8Array(mass.length * EPOCH * this.engine.massBytes).fill(hash & 0xff);
    return { header, planes: [plane], rest: [new Uint8Array(new Uint32Array(mass).buffer), bulk] };
  }
  hot(l: number): Uint8Array {
    return joined(this.hotViews(l));
  }

  setHot(l: number, bytes: Uint8Array): void {
    const layer = this.state[l]!;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const size = this.exactStride;
    const [exact, mass] = [view.getUint32(0, true), view.getUint32(8, true)];
    const masses = HOT_HEADER_BYTES + exact * size;
    const bulk = masses + mass * 4;
    if (bytes.length !== bulk + mass * EPOCH * this.engine.massBytes)
      throw new CorruptDataError('hot part of another shape');
    layer.hash = view.getUint32(4, true);
    layer.exact = Array.from({ length: exact }, (_, i) =>
      bytes.slice(HOT_HEADER_BYTES + i * size, HOT_HEADER_BYTES + (i + 1) * size),
    );
    layer.mass = Array.from({ length: mass }, (_, i) => view.getUint32(masses + i * 4, true));
    if (bytes.subarray(bulk).some((byte) => byte !== (layer.hash & 0xff))) throw new Error('wrong mass');
  }

  blockView(l: number, s: number): Uint8Array {
    return this.block(l, s);
  }
  block(l: number, s: number): Uint8Array {
    const { level, bytes } = this.state[l]!.blocks[s]!;
    const out = new Uint8Array(1 + bytes.length);
    out[0] = level;
    out.set(bytes, 1);
    return out;
  }
  blockVersion(l: number, s: number): number {
    return this.state[l]!.blocks[s]!.version;
  }
  blockBytes(l: number, s: number): number {
    return 1 + this.state[l]!.blocks[s]!.bytes.length;
  }
  segmentsOf(l: number): number {
    return this.state[l]!.blocks.length;
  }
  /** Plans take effect at once here. */
  completePlan(): undefined {}
  clearJournal(): void {
    this.journal = [];
  }

  report(): CacheReport {
    const fp16Bytes = this.position * this.engine.tokenBytes * 2 * this.layers;
    const { bytes, position: tokens, peakBytes } = this;
    return {
      policy: this.config.policy,
      tokens,
      bytes,
      fp16Bytes,
      ratio: bytes ? fp16Bytes / bytes : 0,
      peakBytes,
      tiers: {},
      tierBytes: {},
    };
  }

  dispose(): void {
    if (this.disposed) throw new Error('disposed twice');
    this.disposed = true;
    this.engine.live.delete(this);
  }
}

export class FakeEngine implements Engine {
  readonly model: ModelConfig;
  readonly fingerprint: string;
  readonly numerics: string;
  readonly tokenizer: Tokenizer = new FakeTokenizer();
  readonly template: ChatTemplate;
  readonly eosIds = [IM_END];
  readonly layers: number;
  readonly tokenBytes: number;
  readonly massBytes: number;
  readonly live = new Set<FakeCache>();
  /** Positions fed since the engine was made: what reuse saves. */
  fed = 0;
  readonly #memoryBytes: number;
  onSlice: ((cache: FakeCache) => void) | undefined;

  constructor(options: FakeOptions = {}) {
    this.layers = options.layers ?? 3;
    this.tokenBytes = options.tokenBytes ?? 8;
    this.massBytes = options.massBytes ?? 0;
    this.fingerprint = options.fingerprint ?? 'fake-weights';
    this.numerics = options.numerics ?? 'fake-1';
    this.#memoryBytes = options.memoryBytes ?? 1e9;
    this.onSlice = options.onSlice;
    this.template = new FakeTemplate(this.tokenizer);
    this.model = {
      name: 'fake',
      architecture: 'llama',
      layers: this.layers,
      hidden: 8,
      heads: 1,
      kvHeads: 1,
      headDim: 4,
      ffn: 8,
      vocab: VOCAB,
      contextLength: options.contextLength ?? 8192,
      ropeTheta: 1e4,
      rmsEps: 1e-5,
      attentionScale: 0.5,
    };
  }

  createCache(config: CacheConfig): FakeCache {
    return new FakeCache(this, config);
  }

  restoreCache(reader: CacheStateReader): FakeCache {
    const { header } = reader;
    if (
      header.layoutVersion !== LAYOUT_VERSION ||
      header.numerics !== this.numerics ||
      header.model !== this.fingerprint
    )
      throw new CorruptDataError('the state belongs to another model, numerics or layout');
    const cache = new FakeCache(this, header.config);
    try {
      for (let l = 0; l < this.layers; l++) {
        cache.setHot(l, reader.hot(l));
        for (let s = 0; s < header.segments; s++) {
          const { version, bytes } = reader.block(l, s);
          cache.state[l]!.blocks.push({ level: bytes[0]!, version, bytes: bytes.slice(1) });
        }
      }
      for (const { position, bytes } of reader.journal) cache.apply(position, bytes);
    } catch (error) {
      cache.dispose();
      throw error;
    }
    cache.position = header.position;
    cache.peakBytes = header.peakBytes;
    cache.recodes = header.recodes;
    return cache;
  }

  positionLimit(): number {
    return this.model.contextLength;
  }

  worstCaseBytes(_config: CacheConfig, tokens: number): number {
    return this.layers * (16 + tokens * (this.tokenBytes + 4) + (EPOCH + WINDOW) * this.tokenBytes * 3);
  }

  get availableBytes(): number {
    let bytes = this.#memoryBytes;
    for (const cache of this.live) bytes -= cache.bytes;
    return bytes;
  }

  async feed(
    cache: EngineCache,
    ids: readonly number[],
    want: 'last' | 'all' | 'none',
    options: RunOptions = {},
  ): Promise<Float32Array> {
    if (want === 'all') throw new Error('not used by sessions');
    const fake = cache as FakeCache;
    for (let i = 0; i < ids.length; i++) {
      if (i % 16 === 0) {
        this.onSlice?.(fake);
        await options.yield?.();
        if (options.signal?.aborted) throw new AbortedError();
        if (this.availableBytes < 0)
          throw new MemoryLimitError(fake.bytes, this.availableBytes, 'a fake cache');
      }
      fake.feedOne(ids[i]!);
      this.fed++;
    }
    const logits = new Float32Array(want === 'last' ? VOCAB : 0);
    const h = fake.state.at(-1)!.hash;
    for (let id = 0; id < logits.length; id++) logits[id] = mix(h, id) / 2 ** 30;
    // Only what a person could have said, and an end now and then.
    for (let id = 0; id < FIRST_CHARACTER && want === 'last'; id++) if (id !== IM_END) logits[id] = -100;
    return logits;
  }

  ledger(): Record<string, number> {
    return {};
  }
}

const SPECIALS = ['<|endoftext|>', '<|im_start|>', '<|im_end|>'];
const IM_START = 1;
const IM_END = 2;
const FIRST_CHARACTER = 3;
const CHARACTERS = ['\n', ...Array.from({ length: 95 }, (_, i) => String.fromCharCode(32 + i))];
/** Pairs of lower-case letters are one token: the same text has several spellings in ids, as with byte pairs. */
const FIRST_PAIR = FIRST_CHARACTER + CHARACTERS.length;
const LETTERS = 'abcdefghijklmnopqrstuvwxyz';
const VOCAB = FIRST_PAIR + 26 * 26;

class FakeTokenizer implements Tokenizer {
  readonly vocab = VOCAB;
  /** Characters encoded: what reuse by text saves. */
  encoded = 0;

  encode(text: string): number[] {
    this.encoded += text.length;
    const ids: number[] = [];
    for (let i = 0; i < text.length; i++) {
      const [a, b] = [LETTERS.indexOf(text[i]!), LETTERS.indexOf(text[i + 1] ?? '-')];
      if (a >= 0 && b >= 0) {
        ids.push(FIRST_PAIR + a * 26 + b);
        i++;
      } else {
        const c = CHARACTERS.indexOf(text[i]!);
        ids.push(FIRST_CHARACTER + (c < 0 ? CHARACTERS.indexOf('?') : c));
      }
    }
    return ids;
  }

  decode(ids: readonly number[], options: { skipSpecials?: boolean } = {}): string {
    return ids
      .map((id) => {
        if (id < FIRST_CHARACTER) return options.skipSpecials ? '' : SPECIALS[id]!;
        if (id < FIRST_PAIR) return CHARACTERS[id - FIRST_CHARACTER]!;
        return LETTERS[Math.floor((id - FIRST_PAIR) / 26)]! + LETTERS[(id - FIRST_PAIR) % 26]!;
      })
      .join('');
  }

  stream(): { push(id: number): string; end(): string } {
    return { push: (id) => this.decode([id], { skipSpecials: true }), end: () => '' };
  }

  bytesOf(id: number): Uint8Array {
    return new TextEncoder().encode(this.decode([id]));
  }

  order(): TokenOrder {
    return new TokenOrder(VOCAB, (id) => new TextEncoder().encode(this.decode([id], { skipSpecials: true })));
  }
}

/** ChatML. */
class FakeTemplate implements ChatTemplate {
  readonly #tokenizer: Tokenizer;
  constructor(tokenizer: Tokenizer) {
    this.#tokenizer = tokenizer;
  }

  render(
    messages: Parameters<ChatTemplate['render']>[0],
    options: { addGenerationPrompt?: boolean } = {},
  ): string {
    const said = messages.map(({ role, content }) => `<|im_start|>${role}\n${content}<|im_end|>\n`).join('');
    return options.addGenerationPrompt ? `${said}<|im_start|>assistant\n` : said;
  }

  encode(messages: Parameters<ChatTemplate['encode']>[0], options: { addGenerationPrompt?: boolean } = {}) {
    const ids: number[] = [];
    const spans = messages.map(({ role, content }) => {
      const start = ids.length;
      ids.push(IM_START, ...this.#tokenizer.encode(`${role}\n`), ...this.#tokenizer.encode(content));
      ids.push(IM_END, ...this.#tokenizer.encode('\n'));
      return { start, end: ids.length };
    });
    if (options.addGenerationPrompt) ids.push(IM_START, ...this.#tokenizer.encode('assistant\n'));
    return { ids, spans };
  }
}
