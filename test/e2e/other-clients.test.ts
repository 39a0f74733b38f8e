import { execFile } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { ChatOpenAI } from '@langchain/openai';
import { generateText, jsonSchema, Output, streamText } from 'ai';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { violations } from '../helpers/json-schema.ts';
import { startServer, type TestServer } from '../helpers/server.ts';
import { type TinyServed, tinyServed } from '../helpers/tiny-bundle.ts';

/** Clients that people have, over a socket, against workerd; a tiny model of random weights answers. */
let tiny: TinyServed;
let server: TestServer;
let baseURL: string;

beforeAll(async () => {
  tiny = await tinyServed({ endless: true });
  server = await startServer(tiny);
  baseURL = `${server.url}/v1`;
});
afterAll(async () => {
  await server?.stop();
  await tiny?.remove();
});

const schema = {
  type: 'object' as const,
  properties: {
    mood: { type: 'string' as const, enum: ['glad', 'sad'] },
    size: { type: 'integer' as const },
  },
  required: ['mood', 'size'],
  additionalProperties: false,
};

describe('Vercel AI SDK', () => {
  const model = () =>
    createOpenAICompatible({
      name: 'adkvc',
      baseURL,
      apiKey: 'unused',
      includeUsage: true,
      supportsStructuredOutputs: true,
    })(tiny.modelId);
  const call = {
    system: 'Be brief.',
    prompt: 'What is a test?',
    maxOutputTokens: 8,
    temperature: 0,
    maxRetries: 0,
  };

  test('a whole answer and the same one streamed', async () => {
    const whole = await generateText({ model: model(), ...call });
    expect(whole.finishReason).toBe('length');
    expect(whole.usage.outputTokens).toBe(8);
    expect(whole.usage.inputTokens).toBeGreaterThan(8);
    const stream = streamText({ model: model(), ...call });
    let text = '';
    for await (const piece of stream.textStream) text += piece;
    expect(text).toBe(whole.text);
    expect(await stream.finishReason).toBe('length');
    expect((await stream.usage).outputTokens).toBe(8);
  });

  test('an object of a schema', async () => {
    const { output } = await generateText({
      model: model(),
      ...call,
      maxOutputTokens: 200,
      output: Output.object({ schema: jsonSchema<{ mood: string; size: number }>(schema) }),
    });
    expect(violations(schema, output)).toEqual([]);
  });
});

describe('LangChain', () => {
  const chat = (fields: object = {}) =>
    new ChatOpenAI({
      model: tiny.modelId,
      apiKey: 'unused',
      configuration: { baseURL },
      maxTokens: 8,
      temperature: 0,
      maxRetries: 0,
      ...fields,
    });
  const messages: ['system' | 'human', string][] = [
    ['system', 'Be brief.'],
    ['human', 'What is a test?'],
  ];

  test('a whole answer and the same one streamed', async () => {
    const whole = await chat().invoke(messages);
    expect(whole.response_metadata.finish_reason).toBe('length');
    expect(whole.usage_metadata!.output_tokens).toBe(8);
    let text = '';
    let output = 0;
    for await (const chunk of await chat().stream(messages)) {
      text += chunk.content as string;
      output += chunk.usage_metadata?.output_tokens ?? 0;
    }
    expect(text).toBe(whole.content);
    expect(output).toBe(8);
  });

  test('an object of a schema', async () => {
    const structured = chat({ maxTokens: 200 }).withStructuredOutput(schema, {
      name: 'thing',
      method: 'jsonSchema',
    });
    expect(violations(schema, await structured.invoke(messages))).toEqual([]);
  });

  test('the Responses API', async () => {
    const answer = await chat({ useResponsesApi: true }).invoke(messages);
    expect(answer.id).toMatch(/^(resp|msg)_/);
    expect(answer.usage_metadata!.output_tokens).toBe(8);
  });
});

test("the README's curl, as it stands but for port and model, streaming and not", async () => {
  const readme = await readFile(join(import.meta.dirname, '../../README.md'), 'utf8');
  const command = /```sh\n(curl -N [\s\S]*?)```/.exec(readme)![1]!;
  const here = command
    .replace('http://localhost:8787', server.url)
    .replace('SmolLM2-135M-Instruct', tiny.modelId);
  expect(here).toContain(server.url);
  const run = async (script: string) => (await promisify(execFile)('sh', ['-c', script])).stdout;
  const lines = (await run(here)).split('\n').filter((line) => line.startsWith('data: '));
  expect(lines.at(-1)).toBe('data: [DONE]');
  const chunks = lines.slice(0, -1).map((line) => JSON.parse(line.slice(6)));
  expect(chunks[0].choices[0].delta.role).toBe('assistant');
  const whole = JSON.parse(await run(here.replace('"stream":true', '"stream":false')));
  expect(whole.choices[0].message.content.length).toBeGreaterThan(0);
});
