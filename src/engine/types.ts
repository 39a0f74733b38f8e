import type { CacheStateReader, PersistableCache } from '../cache/persist.ts';
import type { CacheConfig, CacheReport } from '../cache/policy.ts';
import type { ModelConfig } from '../core/config.ts';
import type { TokenOrder } from './token-order.ts';

export interface ChatMessage {
  readonly role: 'system' | 'user' | 'assistant';
  readonly content: string;
}

/** tokenizer.ts. Ids <-> text; the same results as HuggingFace tokenizers. */
export interface Tokenizer {
  readonly vocab: number;
  /** `specials: true` parses special-token text ("<|im_end|>") as the special token; false encodes it as plain characters. Never adds BOS. */
  encode(text: string, options?: { specials?: boolean }): number[];
  /** Special tokens are written out unless `skipSpecials`. Bytes that are no valid UTF-8 become U+FFFD. */
  decode(ids: readonly number[], options?: { skipSpecials?: boolean }): string;
  /** Incremental decoding: never splits a UTF-8 sequence between pieces; the pieces joined equal decode(all, {skipSpecials: true}). */
  stream(): { push(id: number): string; end(): string };
  /** What a token adds to a text, perhaps a part of a character only; special tokens are written out. A view: not to be changed. */
  bytesOf(id: number): Uint8Array;
  /** The vocabulary by its bytes, made when it is first asked for; special tokens have none. */
  order(): TokenOrder;
}

/** template.ts. The model's own Jinja chat template. */
export interface ChatTemplate {
  render(messages: readonly ChatMessage[], options?: { addGenerationPrompt?: boolean }): string;
  /**
   * Ids of the rendered conversation, with each message's span, so that message content is encoded as plain characters (specials only where
   * the template writes them). spans[i] = ids [start, end) that message i adds, its template markup included.
   */
  encode(
    messages: readonly ChatMessage[],
    options?: { addGenerationPrompt?: boolean },
  ): { ids: number[]; spans: { start: number; end: number }[] };
}

export interface SamplingOptions {
  /** 0 is greedy. */
  readonly temperature: number;
  readonly topP: number;
  /** 0: off. */
  readonly topK: number;
  readonly minP: number;
  readonly frequencyPenalty: number;
  readonly presencePenalty: number;
  /** 1: off. */
  readonly repetitionPenalty: number;
  /** The draw for position p hashes (seed, p) and keeps no generator state. */
  readonly seed: number;
  /** Top alternatives to report with each token; undefined: no log-probabilities. */
  readonly topLogprobs?: number;
}

/** A cache that the engine can feed. */
export interface EngineCache extends PersistableCache {
  readonly position: number;
  readonly config: CacheConfig;
  report(): CacheReport;
  /** Bytes of kernel memory held now. */
  readonly bytes: number;
  /** Awaited before the state is read (`hot`, `block`): brings what lies on a GPU. */
  settle?(): Promise<void>;
  /** What `settle` brings lies on a GPU: it takes time. */
  readonly remote?: boolean;
  /** Frees the kernel memory. */
  dispose(): void;
}

export interface RunOptions {
  readonly signal?: AbortSignal;
  /** Awaited between slices of at most about 100 ms of work. */
  readonly yield?: () => Promise<void>;
}

/** One loaded model: weights and kernels of an isolate. Stateless between calls; every state is in the caches. */
export interface Engine {
  readonly model: ModelConfig;
  /** Decides results: weights, tokenizer, template (the manifest's fingerprint). */
  readonly fingerprint: string;
  readonly numerics: string;
  readonly tokenizer: Tokenizer;
  readonly template: ChatTemplate;
  readonly eosIds: readonly number[];
  createCache(config: CacheConfig): EngineCache;
  /** @throws CorruptDataError when the state belongs to another model, numerics or layout, or its shape is wrong. */
  restoreCache(reader: CacheStateReader): EngineCache;
  /**
   * Upper bound of kernel bytes that a cache holds at any moment up to `tokens` tokens under this configuration, peak between epochs and transient copies
   * included: what a scheduler admits by.
   */
  worstCaseBytes(config: CacheConfig, tokens: number): number;
  /** Tokens that a conversation may have under this configuration: the trained length where nothing is ever evicted, far more elsewhere. */
  positionLimit(config: CacheConfig): number;
  /** Kernel bytes that are still free for caches. */
  readonly availableBytes: number;
  /**
   * Feeds ids at cache.position. `want` says whose logits come back: f32 [count, vocab] for 'last' (count 1), 'all', or none.
   * When aborted (AbortedError) the cache stands at some whole position between; cache.position tells which.
   * @param options out: where they go, instead of a new array: f32 [count, vocab]
   */
  feed(
    cache: EngineCache,
    ids: readonly number[],
    want: 'last' | 'all' | 'none',
    options?: RunOptions & { readonly out?: Float32Array },
  ): Promise<Float32Array>;
  /** The most candidates that `feedTop` finds; undefined: all logits lie here anyway. */
  readonly mostTop?: number;
  /**
   * As `feed` with 'last', but only the `count` largest logits come back, best first, equal ones by the lowest id: where logits lie on a GPU, that saves
   * bringing all of them.
   */
  feedTop?(
    cache: EngineCache,
    ids: readonly number[],
    count: number,
    options?: RunOptions,
  ): Promise<TopLogits>;
  ledger(): Record<string, number>;
}

/** The largest logits, best first. */
export interface TopLogits {
  readonly logits: Float32Array;
  readonly ids: Uint32Array;
}

export interface TokenLogprob {
  readonly id: number;
  readonly logprob: number;
}
/** generate.ts: async generator over one answer. The caller may commit between any two events: the cache is whole then. */
export type GenerateEvent =
  | { readonly type: 'prefill'; readonly position: number; readonly total: number }
  | {
      readonly type: 'token';
      readonly id: number;
      /** Text that became certain with this token, stop strings held back. */
      readonly text: string;
      readonly logprob?: number;
      readonly top?: readonly TokenLogprob[];
    }
  | { readonly type: 'finish'; readonly reason: 'stop' | 'length'; readonly text: string };
