import { readFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { jsonLines, runCli } from '../helpers/cli.ts';
import { describeShared, sharedPath } from '../helpers/shared.ts';

const golden = (file: string) => JSON.parse(readFileSync(sharedPath('golden', file)!, 'utf8'));

describeShared('the command line on the golden files', () => {
  test('tokenize', async () => {
    const { strings } = golden('tokenizer-strings.json');
    const { code, lines } = await runCli(
      ['tokenize'],
      jsonLines(strings.map(({ text }: { text: string }) => ({ text }))),
    );
    expect(lines).toEqual(
      strings.map(({ ids, decoded }: { ids: number[]; decoded: string }) => ({ ids, text: decoded })),
    );
    expect(code).toBe(0);
  });

  test('render', async () => {
    const { conversations } = golden('chat-template.json');
    const { code, lines } = await runCli(['render'], jsonLines(conversations));
    expect(lines).toEqual(
      conversations.map(({ text, ids }: { text: string; ids: number[] }) => ({ text, ids })),
    );
    expect(code).toBe(0);
  });
});

test('a bad line is answered in its place, the others too, and the exit code is 1', async () => {
  const stdin = ['{"text":"a"}', 'nonsense', '{"text":7}', '', '{"text":"\u2028\\n"}\r', '{"text":"b"}'].join(
    '\n',
  );
  const { code, lines } = await runCli(['tokenize'], stdin);
  expect(lines).toHaveLength(6);
  expect(lines[0]).toMatchObject({ text: 'a' });
  expect(lines[1].error).toMatchObject({ code: 'invalid_input', param: null });
  expect(lines[2].error).toMatchObject({ code: 'invalid_input', param: 'text' });
  expect(lines[3].error.message).toMatch(/not valid JSON/);
  expect(lines[4]).toMatchObject({ text: '\u2028\n' });
  expect(lines[5]).toMatchObject({ text: 'b' });
  expect(code).toBe(1);
});

test('messages are checked', async () => {
  const { code, lines } = await runCli(
    ['render'],
    jsonLines([
      { messages: [] },
      { messages: [{ role: 7, content: 'x' }] },
      { messages: [{ role: 'user' }] },
    ]),
  );
  expect(lines.map((line) => line.error.param)).toEqual([
    'messages',
    'messages.0.role',
    'messages.0.content',
  ]);
  expect(code).toBe(1);
});

test('no line in, no line out', async () => {
  expect(await runCli(['tokenize'])).toMatchObject({ code: 0, stdout: '' });
});

test.each([
  [['nonsense'], /unknown command 'nonsense'/],
  [['tokenize', '--nonsense'], /unknown option '--nonsense'/],
  [['tokenize', 'extra'], /too many arguments/],
  [['prepare', '--model'], /argument missing/],
  [['prepare', '--model', 'none.gguf'], /there is no model file at .*none\.gguf/],
])('%j is a usage error', async (args, message) => {
  const { code, stdout, stderr } = await runCli(args);
  expect(stderr).toMatch(message);
  expect(stderr).not.toMatch(/\n {4}at /);
  expect(stdout).toBe('');
  expect(code).toBe(2);
});

test('help is an answer', async () => {
  const { code, stdout } = await runCli(['--help']);
  for (const command of ['prepare', 'tokenize', 'render']) expect(stdout).toContain(command);
  expect(code).toBe(0);
});
