import type { MessageSpan } from './messages.ts';

/**
 * A policy decides, at each epoch, how precisely every compressed token is held. It is a pure function of a read-only view
 * and a byte budget: the same view and budget give the same plan. Only the cache applies plans.
 */
export interface CacheView {
  readonly layers: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** The clock: positions [0, position) are in the cache. A multiple of 128. */
  readonly position: number;
  /** Segments, the newest (just leaving the window) included; the same for every layer. */
  readonly segments: readonly SegmentView[];
  readonly seed: number;
  /** The conversation's messages, in order; only where the configuration names quotas. */
  readonly messages?: readonly MessageSpan[];
}

export interface SegmentView {
  readonly index: number;
  /** First position and number of positions. */
  readonly start: number;
  readonly tokens: number;
  /** Tier ids in position order, [layers][kvHeads][tokens]; FRESH for a token that is still exact and must get its first tier now. */
  readonly tiers: Uint8Array;
  /** Attention mass in units of MassNeeds, decayed, as cells hold it; same order, 0 where dropped; undefined if the policy did not ask for it. */
  readonly mass: Uint16Array | undefined;
}
/** Not in a record yet: any tier is allowed. */
export const FRESH = 255;

export interface ByteBudget {
  /** Bytes that all records may hold together, everything counted (headers, maps, means, scales, padding, mass); Infinity without a budget. */
  readonly recordBytes: number;
}

/** New tier ids, one array per segment of the view, same order as SegmentView.tiers. Never lower than before. */
export interface Plan {
  readonly tiers: readonly Uint8Array[];
}

export interface MassNeeds {
  /** Mass decays by this factor at each epoch, 0..1. */
  readonly decay: number;
  /** A cell's mass is a saturating sum of 16 bits in which a probability of 1 counts this many units, at most 65535. */
  readonly unit: number;
  /** 'max': the largest probability that any query gave, in units of 1/65535, instead of a sum. */
  readonly mode?: 'sum' | 'max';
  /** Only this many queries before each epoch count; undefined: all do. */
  readonly lastQueries?: number;
}

export interface Policy {
  readonly name: string;
  /** `mass` undefined: no attention history is kept. */
  readonly needs: {
    readonly mass?: MassNeeds;
    /** Its tiers are plain: vectors are not rotated. */
    readonly plain?: boolean;
  };
  /** Fingerprint of the head profile that plans depend on, 'none' where the policy would use one and has none; undefined: it uses none. */
  readonly profile?: string;
  /** false: plans may exceed the budget, since their tiers decide first. */
  readonly bounded?: boolean;
  /** The finest tier that plans give; undefined: tokens may stay as precise as the exact part holds them. */
  readonly finest?: number;
  plan(view: CacheView, budget: ByteBudget): Plan;
  /** The same plan made in steps, so that none of them takes long; yields the share that is done, 0 to 1. */
  planSteps?(view: CacheView, budget: ByteBudget): Generator<number, Plan>;
}

export interface CacheConfig {
  /** Registered policy name: registry.ts. */
  readonly policy: string;
  /** fp16 bytes over held bytes that the policy aims at; exclusive with `bytes`; neither: the policy's default. */
  readonly ratio?: number;
  /** Bytes the whole cache may hold after each epoch's plan. */
  readonly bytes?: number;
  /** Newest tokens kept exact. */
  readonly window: number;
  /** First tokens kept exact. */
  readonly sinks: number;
  readonly seed: number;
  /** Precision of the exact part; 32 only for --exact with policy full. */
  readonly exactBits: 16 | 32;
  readonly arithmetic: 'integer' | 'float';
  /** false: plans as for a model that was never calibrated. */
  readonly useProfile?: boolean;
  /** true: without a profile heads' sensitivity is estimated from the attention that the plan sees; otherwise all heads count alike. */
  readonly estimate?: boolean;

  /**
   * Tokens of a prompt after which, once, the cache is compressed (KvCache.finish), and before which nothing is: how many eviction methods were published. Its peak
   * is the full cache's. For evaluation: such a cache is not stored.
   */
  readonly oneShot?: number;

  /**
   * What messages of a class keep whatever the policy says, as in "system=4,4 documents=25%:2,1": a share of each message (all of it where none is named) that
   * no head holds more coarsely than the tier. Classes: messages.ts.
   */
  readonly quotas?: string;

  // ---- the adkvc policies: what is left out is as policies/adkvc.ts says. Scalars alone: configurations are compared field by field. -----------
  /** How attention history becomes relevance: trackers/. */
  readonly tracker?: TrackerName;
  /** Attention mass and the queries that it is divided by decay by this factor an epoch, 0..1; for tracker ema. */
  readonly decay?: number;
  /** Queries before an epoch that count; for tracker last-window. */
  readonly lastQueries?: number;
  /** A token's relevance becomes the largest of so many around it; an odd number, 1: its own. */
  readonly pool?: number;
  /** Tokens in a row that share their mean relevance and with it their tier; 1: none do. */
  readonly block?: number;
  /** Share of the head's mean relevance that every token has at least. */
  readonly floor?: number;
  /** Tiers that tokens may get, finest first, as in "8,8 4,4 2,2 drop". */
  readonly tiers?: string;
  /** adkvc-fixed: relevance over the head's mean from which a token is held in the first and in the second of its steps. */
  readonly high?: number;
  readonly mid?: number;
}
export const TRACKER_NAMES = ['ema', 'last-window', 'max', 'mean', 'sum'] as const;
export type TrackerName = (typeof TRACKER_NAMES)[number];
export const DEFAULT_CACHE: CacheConfig = {
  policy: 'adkvc',
  window: 16,
  sinks: 4,
  seed: 0,
  exactBits: 16,
  arithmetic: 'integer',
};

/**
 * A configuration completed by the defaults. Where a policy with a byte budget was given neither ratio nor bytes it gets `bytes`, if the host
 * has such a share for a conversation: short ones are then hardly compressed, and long ones as far as it takes.
 */
export function completeConfig(given: Partial<CacheConfig> = {}, bytes?: number): CacheConfig {
  const config = { ...DEFAULT_CACHE, ...given };
  const open = config.ratio === undefined && config.bytes === undefined;
  // full has no budget, and uniform's first tier would follow from the host instead of from the request.
  const budgeted = config.policy !== 'full' && !config.policy.startsWith('uniform');
  return open && budgeted && bytes !== undefined ? { ...config, bytes } : config;
}

/** What a user sees of a cache; every byte held is counted. */
export interface CacheReport {
  readonly policy: string;
  readonly tokens: number;
  readonly bytes: number;
  readonly fp16Bytes: number;
  /** fp16Bytes / bytes; 0 for an empty cache. */
  readonly ratio: number;
  readonly peakBytes: number;
  /** The head profile that plans use: its fingerprint, or 'none' where the policy wants one and the model has none. */
  readonly profile?: string;
  /** Tiers assigned after the first, a token that has left the window. */
  readonly meanRecodes?: number;
  /** Token-heads by tier name; exact ones under 'exact', dropped ones under 'drop'. */
  readonly tiers: Readonly<Record<string, number>>;
  /** Bytes by the same names, and 'overhead' (headers, tier maps, means, mass): they add up to `bytes`. */
  readonly tierBytes: Readonly<Record<string, number>>;
  /** Where the bytes go: codes, scales, map, mean, mass, padding, headers of the records, and the exact part; they add up to `bytes`. */
  readonly parts?: Readonly<Record<string, number>>;
}
