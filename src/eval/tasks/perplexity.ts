import type { DataFolder } from '../data.ts';
import { Meter } from '../meter.ts';
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
    count: options.count,
    async run(context, methods, emit) {
      const { engine, length } = context;
      const ids = engine.tokenizer.encode(await options.text(context)).slice(0, length);
      if (ids.length < length) {
        for (const method of methods)
          emit(method, { skipped: `the text has ${ids.length} tokens, ${length} were asked for` });
        return;
      }
      for (let open = [...methods]; open.length > 0; ) {
        const full = fullMethod(methods);
        let room = (engine.availableBytes - engine.worstCaseBytes(full.config, length)) * MEMORY_SHARE;
        const batch: Method[] = [];
        for (const method of open) {
          const bytes = engine.worstCaseBytes(method.config, length);
          if (batch.length > 0 && bytes > room) continue;
          room -= bytes;
          batch.push(method);
        }
        open = open.filter((m) => !batch.includes(m));
        await together(context, ids, full, batch, emit);
      }
    },
  };
}

function fullMethod(methods: readonly Method[]): Method {
  const given = methods.find((m) => m.policy === 'full');
  if (given) return given;
  // Its row is finished: the reference must be that very cache again.
  const { window, sinks, seed, arithmetic } = methods[0]!.config;
  const exactBits = arithmetic === 'float' ? 32 : 16;
  return { policy: 'full', config: { policy: 'full', window, sinks, seed, exactBits, arithmetic } };
}

async function together(
  { engine }: SampleContext,
  ids: readonly number[],
  full: Method,
  methods: readonly Method[],
  emit: (method: Method, outcome: Outcome) => void,
): Promise<void> {
  const reference = new Meter(engine, full.config);
  const compressed = methods.filter((m) => m !== full);
  const meters = compressed.map((m) => new Meter(engine, m.config));
  const sums = compressed.map(() => new Sums());
  const own = new Sums();
  const ms = compressed.map(() => 0);
  let ownMs = 0;
  const vocab = engine.model.vocab;
  try {
    for (let at = 0; at < ids.length; ) {
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
      ownMs += reference.takeMs();
      for (const [m, meter] of meters.entries()) {
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
        ms[m]! += meter.takeMs();
      }
      at += n;
    }
    const outcome = (meter: Meter, scores: Record<string, number>, spent: number): Outcome => {
      // What the text takes once everything outside the window is compressed; the cache is not continued.
      if (ids.length % 128 !== 0) meter.cache.endEpoch();
      const cache = meter.figures();
      return {
        scores,
        tokens: ids.length,
        cache,
        speed: {
          prefillTokensPerSecond: (ids.length * 1000) / spent,
          decodeTokensPerSecond: 0,
          ttftMs: spent,
          restoreMs: meter.restore(meter.save()),
        },
      };
    };
    const same = { lossDelta: 0, lossDeltaLast: 0, kl: 0, klLast: 0, top1: 1, top1Last: 1 };
    if (methods.includes(full)) emit(full, outcome(reference, { ...own.means(), ...same }, ownMs));
    compressed.forEach((m, i) => {
      emit(m, outcome(meters[i]!, sums[i]!.means(), ms[i]!));
    });
  } finally {
    reference.dispose();
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
