import type { DataFolder } from '../data.ts';
import { Meter, type Saved } from '../meter.ts';
import { type Distribution, distribution, divergence, lossOf } from '../metrics/divergence.ts';
import type { Method, MetricSpec, Outcome, SampleContext, Task } from '../task.ts';

const spec = (
  name: string,
  label: string,
  unit: MetricSpec['unit'],
  kind: MetricSpec['kind'],
  better: MetricSpec['better'] = 'lower',
): MetricSpec => ({ name, label, unit, kind, better });

const METRICS: readonly MetricSpec[] = [
  spec('lossDeltaLast', 'perplexity change, last half', '%', 'exp-percent'),
  spec('lossDelta', 'perplexity change', '%', 'exp-percent'),
  spec('klLast', 'KL, last half', 'nats', 'mean'),
  spec('kl', 'KL', 'nats', 'mean'),
  spec('top1Last', 'same best token, last half', '%', 'percent', 'higher'),
  spec('top1', 'same best token', '%', 'percent', 'higher'),
  spec('lossLast', 'perplexity, last half', '', 'exp'),
  spec('loss', 'perplexity', '', 'exp'),
];

/** Sums over positions, the second half of the text apart. */
class Sums {
  readonly #all = new Map<string, [sum: number, n: number]>();
  add(name: string, value: number, last: boolean): void {
    for (const key of last ? [name, `${name}Last`] : [name]) {
      const entry = this.#all.get(key) ?? [0, 0];
      this.#all.set(key, [entry[0] + value, entry[1] + 1]);
    }
  }
  /** Plain data, for `Sums.of`. */
  get entries(): [string, [sum: number, n: number]][] {
    return [...this.#all];
  }
  static of(entries: Sums['entries']): Sums {
    const sums = new Sums();
    for (const [key, value] of entries) sums.#all.set(key, value);
    return sums;
  }
  means(): Record<string, number> {
    return Object.fromEntries([...this.#all].map(([key, [sum, n]]) => [key, sum / n]));
  }
}

/** Share of the free kernel memory that caches may take beside the reference's. */
const MEMORY_SHARE = 0.9;

/**
 * Streamed language modelling: every token is predicted from the compressed past, and each distribution is compared with the full cache's at
 * the same position. All methods advance together, epoch by epoch, as many at a time as fit into memory.
 */
export function perplexityTask(options: {
  name: string;
  description: string;
  file: string;
  count: (data: DataFolder) => Promise<number>;
  text: (context: SampleContext) => Promise<string>;
}): Task {
  return {
    name: options.name,
    description: options.description,
    version: 1,
    metrics: METRICS,
    files: [options.file],
    lengths: [2048],
    together: true,
    pauses: true,
    count: options.count,
    async run(context, methods, emit) {
      const { engine, length } = context;
      const ids = engine.tokenizer.encode(await options.text(context)).slice(0, length);
      if (ids.length < length) {
        for (const method of methods)
          emit(method, { skipped: `the text has ${ids.length} tokens, ${length} were asked for` });
        return;
      }
      const { contextLength } = engine.model;
      if (length > contextLength) {
        for (const method of methods)
          emit(method, { skipped: `${length} tokens, the model's context is ${contextLength}` });
        return;
      }
      for (let open = [...methods]; open.length > 0; ) {
        // Its row may be finished: the reference is that very cache again.
        const full = methods.find((m) => m.policy === 'full') ?? context.reference;
        let room = (engine.availableBytes - engine.worstCaseBytes(full.config, length)) * MEMORY_SHARE;
        const batch: Method[] = [];
        for (const method of open) {
          const bytes = engine.worstCaseBytes(method.config, length);
          if (batch.length > 0 && bytes > room) continue;
          room -= bytes;
          batch.push(method);
        }
        open = open.filter((m) => !batch.includes(m));
        if (!(await together(context, ids, full, batch, emit))) return;
      }
    },
  };
}

/** A process that is killed loses at most so much of a sample. */
const PUT_ASIDE_MS = 120_000;

/** What lies aside: of every meter, the reference first, its state; and the sums. */
interface Paused {
  readonly at: number;
  readonly own: Sums['entries'];
  readonly sums: readonly Sums['entries'][];
  readonly ms: readonly number[];
}

/** @returns whether it came to its end: false when the run is to end and the work lies aside */
async function together(
  context: SampleContext,
  ids: readonly number[],
  full: Method,
  methods: readonly Method[],
  emit: (method: Method, outcome: Outcome) => void,
): Promise<boolean> {
  const { engine, aside } = context;
  const compressed = methods.filter((m) => m !== full);
  const meters = [full, ...compressed].map((m) => new Meter(engine, m.config));
  const reference = meters[0]!;
  const vocab = engine.model.vocab;
  const name = [ids, full.config, compressed.map((m) => m.config)];
  try {
    const [paused, ...states] = (aside.take(name) ?? []) as [Paused | undefined, ...Saved[]];
    for (const [m, state] of states.entries()) meters[m]!.resume(state);
    const own = Sums.of(paused?.own ?? []);
    const sums = compressed.map((_, m) => Sums.of(paused?.sums[m] ?? []));
    const ms = paused?.ms.slice() ?? meters.map(() => 0);
    let put = performance.now();
    for (let at = paused?.at ?? 0; at < ids.length; ) {
      const stopping = context.stopping() && at > (paused?.at ?? 0);
      if (stopping || performance.now() - put > PUT_ASIDE_MS) {
        const now: Paused = { at, own: own.entries, sums: sums.map((s) => s.entries), ms };
        const states: Saved[] = [];
        for (const meter of meters) states.push(await meter.save());
        aside.put(name, [now, ...states]);
        if (stopping) return false;
        put = performance.now();
      }
      const n = Math.min(128, ids.length - at);
      const chunk = ids.slice(at, at + n);
      const from = at;
      const kept = new Float32Array(n * vocab);
      const expected: Distribution[] = [];
      // The last token has no successor to predict.
      const wanted = (i: number): boolean => from + i + 1 < ids.length;
      await reference.feed(chunk, wanted, (i, logits) => {
        kept.set(logits, i * vocab);
        expected[i] = distribution(kept.subarray(i * vocab, (i + 1) * vocab));
        const last = from + i + 1 >= ids.length / 2;
        own.add('loss', lossOf(expected[i]!, ids[from + i + 1]!), last);
      });
      ms[0]! += reference.takeMs();
      for (const [m, meter] of meters.slice(1).entries()) {
        await meter.feed(chunk, wanted, (i, logits) => {
          const other = distribution(logits);
          const truth = ids[from + i + 1]!;
          const last = from + i + 1 >= ids.length / 2;
          const loss = lossOf(other, truth);
          sums[m]!.add('loss', loss, last);
          sums[m]!.add('lossDelta', loss - lossOf(expected[i]!, truth), last);
          sums[m]!.add('kl', divergence(expected[i]!, other), last);
          sums[m]!.add('top1', other.top === expected[i]!.top ? 1 : 0, last);
        });
        ms[m + 1]! += meter.takeMs();
      }
      at += n;
    }
    const outcome = async (meter: Meter, scores: Record<string, number>, spent: number): Promise<Outcome> => {
      // What the text takes once everything outside the window is compressed; the cache is not continued.
      const saved = await meter.save();
      await meter.finish();
      meter.takeMs();
      const cache = meter.figures();
      return {
        scores,
        tokens: ids.length,
        cache,
        speed: {
          prefillTokensPerSecond: (ids.length * 1000) / spent,
          decodeTokensPerSecond: 0,
          ttftMs: spent,
          restoreMs: meter.restore(saved),
        },
      };
    };
    const same = { lossDelta: 0, lossDeltaLast: 0, kl: 0, klLast: 0, top1: 1, top1Last: 1 };
    if (methods.includes(full)) emit(full, await outcome(reference, { ...own.means(), ...same }, ms[0]!));
    for (const [i, m] of compressed.entries())
      emit(m, await outcome(meters[i + 1]!, sums[i]!.means(), ms[i + 1]!));
    aside.drop(name);
    return true;
  } finally {
    for (const meter of meters) meter.dispose();
  }
}

const BOOKS = 'books/pg19_test.jsonl.gz';
/** Characters of front matter that a book begins with. */
const FRONT_MATTER = 20_000;
/** No token of a usual vocabulary is longer on average. */
const CHARACTERS_PER_TOKEN = 8;

export const pg19 = perplexityTask({
  name: 'pg19',
  description: 'streamed perplexity of PG-19 test books, from character 20,000',
  file: BOOKS,
  count: async (data) => (await data.jsonLines(BOOKS)).length,
  async text({ data, sample, length }) {
    const books = await data.jsonLines<{ text: string }>(BOOKS);
    return books[sample]!.text.slice(FRONT_MATTER, FRONT_MATTER + length * CHARACTERS_PER_TOKEN);
  },
});

const WIKI = 'wikitext2/wiki.test.raw.gz';
const WIKI_WINDOWS = 32;

export const wikitext2 = perplexityTask({
  name: 'wikitext2',
  description: `streamed perplexity of ${WIKI_WINDOWS} windows of the WikiText-2 test text`,
  file: WIKI,
  count: async () => WIKI_WINDOWS,
  async text({ data, sample, length }) {
    const text = await data.text(WIKI);
    const from = text.indexOf('\n', Math.floor((text.length * sample) / WIKI_WINDOWS)) + 1;
    return text.slice(from, from + length * CHARACTERS_PER_TOKEN);
  },
});
