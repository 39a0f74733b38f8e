import { hash32 } from '../../core/random.ts';
import type { ChatMessage } from '../../engine/types.ts';
import { qaF1 } from '../metrics/qa-f1.ts';
import { rougeL } from '../metrics/rouge-l.ts';
import { cutMiddle } from '../prompt-task.ts';
import type { Task } from '../task.ts';
import { LOSS_METRICS, runDialogue } from '../turns.ts';

const opening = (text: string): ChatMessage[] => [
  { role: 'user', content: text },
  { role: 'assistant', content: 'I have read it. What would you like to know?' },
];

const best =
  (score: (prediction: string, truth: string) => number) =>
  (prediction: string, answers: readonly string[]): number =>
    Math.max(...answers.map((truth) => score(prediction, truth)));

interface Meeting {
  readonly _id: string;
  readonly context: string;
  readonly queries: readonly { readonly input: string; readonly answer: string }[];
}
const QMSUM = 'chat/qmsum_multiquery.jsonl.gz';

/** Yale-LILY/QMSum, test split: one meeting, many queries. */
export const qmsumTurns: Task = {
  name: 'qmsum-turns',
  description: 'QMSum: up to 6 questions in turn about one meeting, cut in the middle to the length',
  version: 1,
  metrics: [
    { name: 'score', label: 'ROUGE-L', unit: '%', better: 'higher', kind: 'percent', rescore: best(rougeL) },
    ...LOSS_METRICS,
  ],
  files: [QMSUM],
  lengths: [4096],
  count: async (data) => (await data.jsonLines<Meeting>(QMSUM)).length,
  async run({ engine, data, sample, length }, methods, emit) {
    const meeting = (await data.jsonLines<Meeting>(QMSUM))[sample]!;
    const text = cutMiddle(engine, meeting.context, length);
    const dialogue = {
      opening: opening(`Here is the transcript of a meeting. I will ask about it afterwards.\n\n${text}`),
      turns: meeting.queries.slice(0, 6).map((q) => ({ question: q.input, answer: q.answer })),
      maxTokens: 128,
      detail: { id: meeting._id },
    };
    for (const method of methods) emit(method, await runDialogue(engine, method, dialogue, rougeL));
  },
};

interface Conversation {
  readonly _id: string;
  readonly sessions: readonly {
    readonly session: number;
    readonly date_time: string;
    readonly turns: readonly { readonly speaker: string; readonly dia_id: string; readonly text: string }[];
  }[];
  readonly qa: readonly {
    readonly question: string;
    readonly answer?: string | number;
    readonly evidence: readonly string[];
    readonly category: number;
  }[];
}
const LOCOMO = 'chat/locomo10.jsonl.gz';
/** Questions about what was never said. */
const ADVERSARIAL = 5;
const QUESTIONS = 8;

/** snap-research/locomo: whole sessions from the first on, as many as fit; questions whose evidence lies in them. */
export const locomoTurns: Task = {
  name: 'locomo-turns',
  description: `LoCoMo: ${QUESTIONS} questions in turn about the sessions of one long acquaintance`,
  version: 1,
  metrics: [
    { name: 'score', label: 'F1', unit: '%', better: 'higher', kind: 'percent', rescore: best(qaF1) },
    ...LOSS_METRICS,
  ],
  files: [LOCOMO],
  lengths: [4096],
  count: async (data) => (await data.jsonLines<Conversation>(LOCOMO)).length,
  async run({ engine, data, sample, length, seed }, methods, emit) {
    const conversation = (await data.jsonLines<Conversation>(LOCOMO))[sample]!;
    const told = new Set<string>();
    let text = '';
    let tokens = 0;
    for (const session of conversation.sessions) {
      const lines = session.turns.map((t) => `${t.speaker}: ${t.text}\n`).join('');
      const piece = `\n${session.date_time}\n${lines}`;
      tokens += engine.tokenizer.encode(piece).length;
      if (tokens > length) break;
      text += piece;
      for (const turn of session.turns) told.add(turn.dia_id);
    }
    const known = conversation.qa
      .filter((q) => q.category !== ADVERSARIAL && q.answer !== undefined && q.evidence.length > 0)
      .filter((q) => q.evidence.every((e) => told.has(e)))
      .map((q, i) => ({ question: q.question, answer: String(q.answer), at: hash32(seed, sample, i) }))
      .sort((a, b) => a.at - b.at)
      .slice(0, QUESTIONS);
    if (known.length === 0) {
      for (const method of methods) emit(method, { skipped: `no session fits into ${length} tokens` });
      return;
    }
    const dialogue = {
      opening: opening(
        `Here is what two people wrote to each other. I will ask about it afterwards.\n${text}`,
      ),
      turns: known.map((q) => ({ question: `${q.question} Answer in a few words.`, answer: q.answer })),
      maxTokens: 24,
      detail: { id: conversation._id },
    };
    for (const method of methods) emit(method, await runDialogue(engine, method, dialogue, qaF1));
  },
};
