import type { CacheConfig, CacheReport } from '../cache/policy.ts';
import { hash32 } from '../core/random.ts';
import type { ModelEngine } from '../engine/engine.ts';

/** Where a cache's bytes go, a token and key/value head: dropped tokens count, since their neighbours' bytes are what is left of them. */
export interface TokenBytes {
  readonly policy: string;
  /** As asked for, and by the bytes held. */
  readonly ratio: number;
  readonly trueRatio: number;
  readonly perTokenHead: number;
  /** Parts of a record, and the exact tokens; they add up to perTokenHead. */
  readonly parts: Readonly<Record<string, number>>;
  /** Share of the token-heads by tier. */
  readonly tiers: Readonly<Record<string, number>>;
}

/** Feeds `ids`, compresses what lies outside the window, and divides the bytes held. */
export async function measureTokenBytes(
  engine: ModelEngine,
  config: CacheConfig & { readonly ratio: number },
  ids: readonly number[],
): Promise<TokenBytes> {
  const cache = engine.createCache(config);
  try {
    await engine.feed(cache, ids, 'none');
    cache.finish();
    return divided(cache.report(), config.ratio, engine.model.layers * engine.model.kvHeads);
  } finally {
    cache.dispose();
  }
}

function divided(report: CacheReport, ratio: number, heads: number): TokenBytes {
  const cells = report.tokens * heads;
  const each = (figures: Readonly<Record<string, number>>): Record<string, number> =>
    Object.fromEntries(Object.entries(figures).map(([name, n]) => [name, n / cells]));
  return {
    policy: report.policy,
    ratio,
    trueRatio: report.ratio,
    perTokenHead: report.bytes / cells,
    parts: each(report.parts ?? {}),
    tiers: each(report.tiers),
  };
}

/** Seeded noise, for who has no text at hand: attention over it is flatter than over language. */
export const noiseIds = (vocab: number, tokens: number): number[] =>
  Array.from({ length: tokens }, (_, i) => hash32(i, 3) % vocab);

/** The table, as Markdown. */
export function tokenBytesTable(rows: readonly TokenBytes[]): string {
  const names = ['codes', 'scales', 'map', 'mean', 'mass', 'padding', 'headers', 'exact'];
  const line = (cells: readonly string[]): string => `| ${cells.join(' | ')} |`;
  return [
    line(['ratio', 'true ratio', 'bytes a token-head', ...names, 'tiers, % of token-heads']),
    line(new Array(4 + names.length).fill('---')),
    ...rows.map((row) =>
      line([
        `${row.ratio}x`,
        `${row.trueRatio.toFixed(2)}x`,
        row.perTokenHead.toFixed(1),
        ...names.map((name) => (row.parts[name] ?? 0).toFixed(2)),
        Object.entries(row.tiers)
          .sort(([, a], [, b]) => b - a)
          .map(([name, share]) => `${name}: ${(100 * share).toFixed(0)}`)
          .join('; '),
      ]),
    ),
  ].join('\n');
}
