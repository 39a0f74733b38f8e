import { DEFAULT_CACHE } from '../cache/policy.ts';
import { PROFILE_FORMAT, PROFILE_VERSION, type ProfileFile } from '../cache/profile.ts';
import { EPOCH } from '../core/config.ts';
import type { ModelEngine } from '../engine/engine.ts';
import { logSumExp } from '../engine/sampler.ts';
import { type Harm, HeadProbe } from './head-probe.ts';

/**
 * The per-head profile, measured: one head's old keys or values are put at 2 bits, or dropped, and what the model then expects is compared.
 *
 * A text's prefix is computed once and kept in f16; for each head it is damaged in place, the tokens that follow are run again, and
 * the prefix is mended. So a head costs one chunk of at most 127 tokens a text instead of the whole text.
 */

/** One piece of measuring: ids [0, prefix) are the past, the rest is run for each head. */
export type CalibrationItem =
  /** The mean divergence over the tokens after the prefix: profile entries keys, values, drop. */
  | { readonly kind: 'text'; readonly ids: readonly number[]; readonly prefix: number }
  /** The rise of the mean negative log-likelihood of the last `answer` ids when the head drops its past: profile entry needle. */
  | {
      readonly kind: 'needle';
      readonly ids: readonly number[];
      readonly prefix: number;
      readonly answer: number;
    };

/** An item for some heads; tasks can run apart, on several threads. Heads count layer * kvHeads + kvHead. */
export interface CalibrationTask {
  readonly item: CalibrationItem;
  readonly from: number;
  readonly to: number;
}

/** For each head of the task: its numbers, by name. */
export type CalibrationResult = Partial<Record<Harm | 'needle', number[]>>;

/** Every second token's distribution is compared: neighbours say nearly the same, and logits are a fifth of the work. */
const SCORE_EVERY = 2;

/** Runs one task. @param onHead called after each head */
export async function runCalibrationTask(
  engine: ModelEngine,
  { item, from, to }: CalibrationTask,
  arithmetic: 'integer' | 'float',
  onHead: () => void = () => {},
): Promise<CalibrationResult> {
  const { ids, prefix } = item;
  if (prefix % EPOCH !== 0 || ids.length - prefix < 2 || ids.length - prefix >= EPOCH)
    throw new Error(`a prefix of ${prefix} tokens and ${ids.length - prefix} after it do not fit the clock`);
  const cache = engine.createCache({ ...DEFAULT_CACHE, policy: 'full', arithmetic });
  try {
    await engine.feed(cache, ids.slice(0, prefix), 'none');
    // The newest segment too is a record that can be damaged.
    cache.finish();
    const probe = new HeadProbe(cache);
    try {
      const scored = await scorer(engine, cache, item);
      const result: CalibrationResult = {};
      const harms: readonly Harm[] = item.kind === 'text' ? ['keys', 'values', 'drop'] : ['drop'];
      for (let head = from; head < to; head++) {
        for (const harm of harms) {
          probe.mend();
          const kvHeads = engine.model.kvHeads;
          probe.damage(Math.floor(head / kvHeads), head % kvHeads, harm);
          const name = item.kind === 'needle' ? 'needle' : harm;
          result[name] ??= [];
          result[name].push(await scored());
        }
        onHead();
      }
      return result;
    } finally {
      probe.dispose();
    }
  } finally {
    cache.dispose();
  }
}

/** Scores the undamaged cache now; what it returns scores the cache as it is then, against that. */
async function scorer(
  engine: ModelEngine,
  cache: ReturnType<ModelEngine['createCache']>,
  item: CalibrationItem,
): Promise<() => Promise<number>> {
  const tail = item.ids.slice(item.prefix);
  if (item.kind === 'needle') {
    const first = tail.length - item.answer - 1;
    const loss = async (): Promise<number> => {
      let sum = 0;
      await engine.feedEach(
        cache,
        tail.slice(0, -1),
        (i) => i >= first,
        (i, logits) => {
          sum += logSumExp(logits) - logits[tail[i + 1]!]!;
        },
      );
      return sum / item.answer;
    };
    const whole = await loss();
    return async () => Math.max(0, (await loss()) - whole);
  }
  const wanted = (i: number): boolean => i % SCORE_EVERY === SCORE_EVERY - 1;
  const reference = new Map<number, { logits: Float32Array; p: Float32Array; entropyTerm: number }>();
  await engine.feedEach(cache, tail, wanted, (i, logits) => {
    const lse = logSumExp(logits);
    const kept = logits.slice();
    reference.set(i, { logits: kept, p: kept.map((x) => Math.exp(x - lse)), entropyTerm: lse });
  });
  return async () => {
    let sum = 0;
    await engine.feedEach(cache, tail, wanted, (i, logits) => {
      const { logits: z, p, entropyTerm } = reference.get(i)!;
      // KL(p || q) = sum p (z_p - z_q) - lse_p + lse_q
      let mean = 0;
      for (let id = 0; id < z.length; id++) mean += p[id]! * (z[id]! - logits[id]!);
      sum += mean - entropyTerm + logSumExp(logits);
    });
    return Math.max(0, sum / reference.size);
  };
}

/** Runs of a head: three of 127 tokens, half their logits wanted; or one of some 50. */
const COST = { text: 8, needle: 1 };

/** Divides items among threads, those that take longest in the most parts; a part is some of the heads, and computes its item's past anew. */
export function calibrationTasks(
  items: readonly CalibrationItem[],
  heads: number,
  threads: number,
): CalibrationTask[] {
  const all = items.reduce((sum, { kind }) => sum + COST[kind], 0);
  return items.flatMap((item) => {
    const parts = Math.min(heads, Math.ceil((threads * COST[item.kind]) / all));
    return Array.from({ length: parts }, (_, i) => ({
      item,
      from: Math.floor((heads * i) / parts),
      to: Math.floor((heads * (i + 1)) / parts),
    }));
  });
}

/** Means over items. @throws Error if a head was not measured */
export function combineResults(
  done: readonly { readonly task: CalibrationTask; readonly result: CalibrationResult }[],
  heads: number,
): Pick<ProfileFile, 'keys' | 'values' | 'drop' | 'needle'> {
  const mean = (name: Harm | 'needle'): number[] => {
    const sums = new Float64Array(heads);
    const counts = new Uint32Array(heads);
    for (const { task, result } of done)
      result[name]?.forEach((x, i) => {
        sums[task.from + i]! += x;
        counts[task.from + i]!++;
      });
    return Array.from(sums, (sum, head) => {
      if (counts[head] === 0) throw new Error(`no ${name} was measured for head ${head}`);
      return Number((sum / counts[head]!).toPrecision(5));
    });
  };
  return { keys: mean('keys'), values: mean('values'), drop: mean('drop'), needle: mean('needle') };
}

export function profileFile(
  engine: Pick<ModelEngine, 'model'>,
  source: string,
  measured: ProfileFile['measured'],
  numbers: Pick<ProfileFile, 'keys' | 'values' | 'drop' | 'needle'>,
): ProfileFile {
  const { name, layers, kvHeads } = engine.model;
  return {
    format: PROFILE_FORMAT,
    version: PROFILE_VERSION,
    model: { name, layers, kvHeads },
    source,
    measured,
    ...numbers,
  };
}
