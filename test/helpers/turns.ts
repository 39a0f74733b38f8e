import type { ChatMessage } from '../../src/engine/types.ts';
import type { TurnEvent, TurnRequest } from '../../src/session/api.ts';

export const GREEDY = {
  temperature: 0,
  topP: 1,
  topK: 0,
  minP: 0,
  frequencyPenalty: 0,
  presencePenalty: 0,
  repetitionPenalty: 1,
  seed: 0,
};

export const user = (content: string): ChatMessage => ({ role: 'user', content });
export const assistant = (content: string): ChatMessage => ({ role: 'assistant', content });
export const system = (content: string): ChatMessage => ({ role: 'system', content });

/** Text of about `tokens` fake tokens that depends on `seed`. */
export function prose(tokens: number, seed = 1): string {
  let x = seed * 2654435761;
  let text = '';
  for (let i = 0; i < tokens; i++) {
    x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
    text += String.fromCharCode(65 + ((x >>> 24) % 26));
  }
  return text;
}

export function request(messages: readonly ChatMessage[], more: Partial<TurnRequest> = {}): TurnRequest {
  return {
    messages,
    mode: 'whole',
    overwrite: false,
    store: true,
    implicit: false,
    sampling: GREEDY,
    stop: [],
    maxTokens: 20,
    ...more,
  };
}

export interface Outcome {
  readonly events: TurnEvent[];
  readonly ids: number[];
  readonly text: string;
  readonly finished: Extract<TurnEvent, { type: 'finished' }>;
  readonly started: Extract<TurnEvent, { type: 'started' }>;
}

/** Reads a turn to its end. @throws when it failed */
export async function read(events: AsyncIterable<TurnEvent>): Promise<Outcome> {
  const all: TurnEvent[] = [];
  for await (const event of events) all.push(event);
  const last = all.at(-1);
  if (last?.type !== 'finished')
    throw Object.assign(new Error(`ended with ${JSON.stringify(last)}`), { events: all });
  const tokens = all.filter((event) => event.type === 'token');
  return {
    events: all,
    ids: tokens.map(({ id }) => id),
    text: tokens.map(({ text }) => text).join('') + last.text,
    finished: last,
    started: all.find((event) => event.type === 'started')!,
  };
}
