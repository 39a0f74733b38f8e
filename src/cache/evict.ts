import { DROP, tierNamed } from '../kernels/layout.ts';
import { planBytes } from './allocate.ts';
import { type ByteBudget, type CacheConfig, type CacheView, FRESH, type Plan } from './policy.ts';
import { byHead } from './relevance.ts';

/** How many tokens each head keeps when heads keep `n` on average. [layers * kvHeads] */
export type Counts = (n: number) => ArrayLike<number>;

/**
 * Keeps, for each head, the tokens of the highest scores in the exact part's precision, and drops the others; as many as the byte budget holds.
 * What is dropped stays dropped. Ties go to the older token.
 * @param scores one array a segment in the order of its tiers, any finite numbers
 * @param counts rises with n; by default every head keeps n
 */
export function keepBest(
  view: CacheView,
  budget: ByteBudget,
  config: CacheConfig,
  scores: readonly Float32Array[],
  { counts, mass }: { counts?: Counts; mass: boolean },
): Plan {
  const heads = view.layers * view.kvHeads;
  const keep = tierNamed(config.exactBits === 32 ? 'f32' : 'f16');
  const ranks = ranksOf(view, scores);
  const countsOf = counts ?? ((n: number) => new Float64Array(heads).fill(n));
  const planOf = (n: number): Plan => {
    const most = countsOf(n);
    return {
      tiers: view.segments.map((segment, s) =>
        segment.tiers.map((old, i) => {
          if (ranks[s]![i]! >= most[Math.floor(i / segment.tokens)]!) return DROP;
          return old === FRESH ? keep : old;
        }),
      ),
    };
  };
  // The largest n whose plan fits: bytes rise with it.
  let low = 0;
  let high = view.segments.reduce((sum, s) => sum + s.tokens, 0) * (counts ? heads : 1) + 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (planBytes(view, planOf(middle), mass) <= budget.recordBytes) low = middle;
    else high = middle;
  }
  return planOf(low);
}

/** Place of each token within its head by falling score, 0 first; dropped tokens have none (2^32 - 1). */
function ranksOf(view: CacheView, scores: readonly Float32Array[]): Uint32Array[] {
  const ranks = view.segments.map((s) => new Uint32Array(s.tiers.length).fill(0xffff_ffff));
  const starts: number[] = [];
  let total = 0;
  for (const { tokens } of view.segments) {
    starts.push(total);
    total += tokens;
  }
  const segmentOf = new Uint16Array(total);
  view.segments.forEach(({ tokens }, s) => {
    segmentOf.fill(s, starts[s], starts[s]! + tokens);
  });
  byHead(view, scores, (line, head) => {
    const order: number[] = [];
    for (let i = 0; i < total; i++) {
      const s = segmentOf[i]!;
      const { tokens, tiers } = view.segments[s]!;
      if (tiers[head * tokens + i - starts[s]!] !== DROP) order.push(i);
    }
    order.sort((a, b) => line[b]! - line[a]! || a - b);
    order.forEach((i, rank) => {
      const s = segmentOf[i]!;
      ranks[s]![head * view.segments[s]!.tokens + i - starts[s]!] = rank;
    });
  });
  return ranks;
}

/** Scores that are a function of the head and the position. */
export const scoreBy = (
  view: CacheView,
  score: (layer: number, kvHead: number, position: number) => number,
): Float32Array[] =>
  view.segments.map(({ tokens, start, tiers }) =>
    Float32Array.from(tiers, (_, at) => {
      const head = Math.floor(at / tokens);
      return score(Math.floor(head / view.kvHeads), head % view.kvHeads, start + (at % tokens));
    }),
  );
