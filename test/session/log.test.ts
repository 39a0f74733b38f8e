import fc from 'fast-check';
import { expect, test } from 'vitest';
import type { ChatMessage } from '../../src/engine/types.ts';
import { anchors, answered, EMPTY_LOG, joinPrompt, type Log, titleOf } from '../../src/session/log.ts';
import { FakeEngine } from '../helpers/fake-engine.ts';
import { assistant, system, user } from '../helpers/turns.ts';

const engine = new FakeEngine();
const whole = (messages: readonly ChatMessage[], overwrite = false) =>
  ({ messages, mode: 'whole', overwrite }) as const;
const append = (messages: readonly ChatMessage[]) =>
  ({ messages, mode: 'append', overwrite: false }) as const;
const letter = (c: string) => engine.tokenizer.encode(c)[0]!;
const IM_END = engine.eosIds[0]!;

/** A log in which "ab" was said as two tokens, where the tokenizer would make one. */
function logOf(first: readonly ChatMessage[], sampled = [letter('a'), letter('b'), IM_END]): Log {
  const prompt = joinPrompt(engine, EMPTY_LOG, whole(first));
  return answered(prompt, sampled, 'ab', prompt.ids.length + sampled.length - 1);
}

test('a first prompt is the template of its messages', () => {
  const messages = [system('s'), user('hello')];
  const { ids, shared, messages: logged } = joinPrompt(engine, EMPTY_LOG, whole(messages));
  expect(ids).toEqual(engine.template.encode(messages, { addGenerationPrompt: true }).ids);
  expect(shared).toBe(0);
  expect(logged.map(({ end }) => end)).toEqual(engine.template.encode(messages).spans.map(({ end }) => end));
});

test('an answer that comes back as text keeps the ids that were sampled, and gets its closing markup', () => {
  const log = logOf([user('hello')]);
  const next = joinPrompt(engine, log, whole([user('hello'), assistant('ab'), user('more')]));
  const text = engine.tokenizer.decode(next.ids);
  expect(text).toBe(
    '<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nab<|im_end|>\n<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n',
  );
  expect(next.shared).toBe(log.ids.length);
  expect(next.ids.slice(log.ids.length - 3, log.ids.length)).toEqual([letter('a'), letter('b'), IM_END]);
  expect(next.messages[1]).toMatchObject({ prompt: log.ids.length - 3 });
  expect(next.messages[1]).not.toHaveProperty('open');
});

test('only what is new is tokenised', () => {
  const log = logOf([user('x'.repeat(5_000))]);
  const tokenizer = engine.tokenizer as unknown as { encoded: number };
  const before = tokenizer.encoded;
  joinPrompt(engine, log, whole([user('x'.repeat(5_000)), assistant('ab'), user('more')]));
  expect(tokenizer.encoded - before).toBeLessThan(100);
});

test('an answer cut by its length is closed with the whole end-of-reply markup', () => {
  const log = logOf([user('hello')], [letter('a'), letter('b')]);
  const next = joinPrompt(engine, log, append([user('more')]));
  expect(engine.tokenizer.decode(next.ids)).toContain('assistant\nab<|im_end|>\n<|im_start|>user\nmore');
  expect(next.shared).toBe(log.ids.length);
});

test('append and whole lead to the same ids', () => {
  const log = logOf([system('s'), user('hello')]);
  const a = joinPrompt(engine, log, append([user('more')]));
  const b = joinPrompt(engine, log, whole([system('s'), user('hello'), assistant('ab'), user('more')]));
  expect(a).toEqual(b);
});

test('an appended turn that was interrupted before its answer is not said twice when it is sent again', () => {
  const log = logOf([user('hello')]);
  const first = joinPrompt(engine, log, append([user('more')]));
  const interrupted = answered(first, [], '', 20);
  const second = joinPrompt(engine, interrupted, append([user('more')]));
  expect(second.ids).toEqual(first.ids);
  expect(joinPrompt(engine, interrupted, append([user('another')])).messages).toHaveLength(4);
});

test('an answer that was edited is tokenised, and everything after it is new', () => {
  const log = logOf([user('hello')]);
  const next = joinPrompt(engine, log, whole([user('hello'), assistant('abc'), user('more')]));
  expect(next.ids).toEqual(
    engine.template.encode([user('hello'), assistant('abc'), user('more')], { addGenerationPrompt: true })
      .ids,
  );
  expect(next.shared).toBeLessThan(log.ids.length);
  expect(next.shared).toBeGreaterThanOrEqual(log.messages[1]!.prompt!);
});

test('messages that share no turn diverge, a shared system message alone is no turn; overwrite allows it', () => {
  const log = logOf([system('s'), user('hello')]);
  expect(() => joinPrompt(engine, log, whole([system('s'), user('other')]))).toThrow(
    expect.objectContaining({ code: 'session_diverged', param: 'messages' }),
  );
  const next = joinPrompt(engine, log, whole([system('s'), user('other')], true));
  expect(next.shared).toBeGreaterThan(0);
  expect(next.messages).toHaveLength(2);
  expect(() => joinPrompt(engine, EMPTY_LOG, whole([]))).toThrow(
    expect.objectContaining({ code: 'invalid_input' }),
  );
});

test('under another model the text counts and the ids do not', () => {
  const log = logOf([user('hello')]);
  const messages = [user('hello'), assistant('ab'), user('more')];
  const next = joinPrompt(engine, log, whole(messages), false);
  expect(next.shared).toBe(0);
  expect(next.ids).toEqual(engine.template.encode(messages, { addGenerationPrompt: true }).ids);
  expect(() => joinPrompt(engine, log, whole([user('other')]), false)).toThrow('share no turn');
});

test('anchors are the places to return to: before each of the last answers, and after the ones before them', () => {
  let log = EMPTY_LOG;
  const ends: number[] = [];
  const prompts: number[] = [];
  for (let turn = 0; turn < 3; turn++) {
    const prompt = joinPrompt(engine, log, append([user(`question ${turn}`)]));
    log = answered(prompt, [letter('a'), IM_END], 'a', prompt.ids.length + 1);
    prompts.push(prompt.ids.length);
    ends.push(log.ids.length);
  }
  // The sampled end gives way to the template's, and its newline follows: one id more.
  expect(anchors(log, 2)).toEqual([prompts[2]! - 1, ends[1]! + 1, prompts[1]! - 1, ends[0]! + 1]);
  const waiting = answered(joinPrompt(engine, log, append([user('again')])), [], '', 5);
  expect(anchors(waiting, 1)).toEqual([waiting.ids.length - 1, ends[2]! + 1]);
});

test('whatever was said and sampled, joining is consistent: spans cover the ids, the log is a prefix, text is kept', () => {
  const content = fc.string({ maxLength: 12, unit: fc.constantFrom(...'ab \nZ?') });
  const answer = fc.array(fc.constantFrom('a', 'b', 'Z', ' ').map(letter), { minLength: 1, maxLength: 6 });
  fc.assert(
    fc.property(
      fc.array(fc.tuple(content, answer, fc.boolean()), { minLength: 1, maxLength: 5 }),
      content,
      (turns, last) => {
        let log = EMPTY_LOG;
        const said: ChatMessage[] = [];
        for (const [question, sampled, ended] of turns) {
          said.push(user(question));
          const prompt = joinPrompt(engine, log, whole(said));
          const ids = ended ? [...sampled, IM_END] : sampled;
          const text = engine.tokenizer.decode(sampled);
          log = answered(prompt, ids, text, prompt.ids.length + ids.length - 1);
          said.push(assistant(text));
          expect(log.messages.map(({ role, content }) => ({ role, content }))).toEqual(said);
          expect(log.messages.at(-1)!.end).toBe(log.ids.length);
        }
        const next = joinPrompt(engine, log, whole([...said, user(last)]));
        // Everything that was fed is reused: nothing before the last, unfed token changes.
        expect(next.shared).toBeGreaterThanOrEqual(log.fed);
        expect(engine.tokenizer.decode(next.ids)).toBe(
          engine.template.render([...said, user(last)], { addGenerationPrompt: true }),
        );
      },
    ),
    { numRuns: 60, seed: 7 },
  );
});

test('what continues cuts nothing that was finished', () => {
  const log = logOf([user('hello')]);
  const continuing = (messages: readonly ChatMessage[]) => ({ ...whole(messages, true), continues: true });
  const next = [user('hello'), assistant('ab'), user('more')];
  expect(joinPrompt(engine, log, continuing(next)).shared).toBe(log.ids.length);
  expect(() => joinPrompt(engine, log, continuing([user('hello')]))).toThrow(/went on/);
  expect(() => joinPrompt(engine, log, continuing([user('hello'), assistant('c'), user('more')]))).toThrow();
  // An interrupted answer is asked for again.
  const prompt = joinPrompt(engine, EMPTY_LOG, whole([user('hello')]));
  const cut = answered(prompt, [letter('a')], 'a', prompt.ids.length, 'key');
  expect(joinPrompt(engine, cut, continuing([user('hello')])).ids).toEqual(prompt.ids);
});

test.each([
  ['', ''],
  ['Two\n\n  lines', 'Two lines'],
  [`${'𝛑 '.repeat(100)}end`, `${'𝛑 '.repeat(40).slice(0, -1)}…`],
  [`${' '.repeat(400)}late`, 'late'],
  [`${'a '.repeat(20)}${' '.repeat(279)}\u{1f4a5}`, 'a '.repeat(20).trim()],
])('the title of %j', (content, title) => {
  const messages = [
    { role: 'system' as const, content: 'Be brief.', end: 1 },
    { role: 'user' as const, content, end: 2 },
  ];
  expect(titleOf({ messages })).toBe(title);
});
