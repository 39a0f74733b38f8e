import fc from 'fast-check';
import { beforeAll, describe, expect, test } from 'vitest';
import { DEFAULT_CACHE } from '../../src/cache/policy.ts';
import { JsonConstraint } from '../../src/engine/constraint.ts';
import type { ModelEngine } from '../../src/engine/engine.ts';
import { generate } from '../../src/engine/generate.ts';
import { begin, canEnd, type State, step } from '../../src/engine/json/acceptor.ts';
import {
  ANY_OBJECT,
  compileSchema,
  MAX_SCHEMA_DEPTH,
  MAX_SCHEMA_WAYS,
  type Shape,
} from '../../src/engine/json/schema.ts';
import { GREEDY } from '../../src/engine/sampler.ts';
import { violations } from '../helpers/json-schema.ts';
import { tinyEngine } from '../helpers/tiny-engine.ts';

const bytes = (text: string) => new TextEncoder().encode(text);
/** 'yes': a whole text; 'begun': it could become one; 'no': it cannot. */
function read(shape: Shape, text: string | Uint8Array): 'yes' | 'begun' | 'no' {
  let state: State = begin(shape);
  for (const b of typeof text === 'string' ? bytes(text) : text) {
    state = step(state, b);
    if (state.length === 0) return 'no';
  }
  return canEnd(state) ? 'yes' : 'begun';
}
const compile = (schema: unknown) => compileSchema(schema, 'schema');

describe('the acceptor', () => {
  test('takes what JSON.stringify writes of any value (seeded, 500 values)', () => {
    const any: Shape = { type: 'any' };
    // Doubles are written with up to 17 digits, more than the acceptor lets a model write.
    const json = fc
      .jsonValue({ maxDepth: 4, noUnicodeString: false })
      .filter((v) => !/\d{16}|e[+-]?\d{3}|\\ud/.test(JSON.stringify(v)));
    fc.assert(
      fc.property(json, (value) => read(any, JSON.stringify(value)) === 'yes'),
      { seed: 7, numRuns: 500 },
    );
  });

  test.each([
    ['{"a": 1, "b": [true, null]}', 'yes'],
    ['{"a":1', 'begun'],
    ['{"a":01}', 'no'],
    ['{"a":1,}', 'no'],
    ['{"a":.5}', 'no'],
    ['{"a":1e999}', 'no'],
    ['{"a":-}', 'no'],
    ['{"a":"\n"}', 'no'],
    ['{"a":"\\x"}', 'no'],
    ['{"a":"\\ud800"}', 'no'],
    ['{"a":"\\u00e9"}', 'yes'],
    ["{'a':1}", 'no'],
    ['[1]', 'no'],
    ['{} ', 'no'],
    ['{"a":  1}', 'no'],
  ] as const)('an object of any kind: %s is %s', (text, expected) => {
    expect(read(ANY_OBJECT, text)).toBe(expected);
  });

  test('only well-formed UTF-8', () => {
    const shape = compile({ type: 'string' });
    const quoted = (...inner: number[]) => read(shape, Uint8Array.from([0x22, ...inner, 0x22]));
    expect(read(shape, '"é€😀"')).toBe('yes');
    for (const bad of [
      [0x80],
      [0xc0, 0x80],
      [0xe0, 0x80, 0x80],
      [0xed, 0xa0, 0x80],
      [0xf5, 0x80, 0x80, 0x80],
      [0xc3],
    ])
      expect(quoted(...bad)).toBe('no');
  });

  test('lengths count characters', () => {
    const shape = compile({ type: 'string', minLength: 2, maxLength: 3 });
    expect(['"a"', '"ab"', '"😀é"', '"\\n\\u0041"', '"abc"', '"abcd"'].map((t) => read(shape, t))).toEqual([
      'no',
      'yes',
      'yes',
      'yes',
      'yes',
      'no',
    ]);
  });

  test('objects: order, required and optional properties, nothing else', () => {
    const shape = compile({
      type: 'object',
      properties: { a: { type: 'integer' }, b: { type: 'string' }, c: { type: 'boolean' } },
      required: ['b'],
    });
    const cases: [string, string][] = [
      ['{"a":1,"b":"x","c":true}', 'yes'],
      ['{"b":"x"}', 'yes'],
      ['{"a":1}', 'no'],
      ['{"b":"x","a":1}', 'no'],
      ['{"b":"x","d":1}', 'no'],
      ['{"a":1.5,"b":""}', 'no'],
    ];
    for (const [text, expected] of cases) expect([text, read(shape, text)]).toEqual([text, expected]);
  });

  test('arrays, enumerations, unions, references', () => {
    const list = compile({
      type: 'array',
      items: { enum: ['red', 'red wine', 3] },
      minItems: 1,
      maxItems: 2,
    });
    expect(['[]', '["red"]', '["red wine", 3]', '[3,3,3]', '["blue"]'].map((t) => read(list, t))).toEqual([
      'no',
      'yes',
      'yes',
      'no',
      'no',
    ]);
    const tree = compile({
      $ref: '#/$defs/node',
      $defs: {
        node: {
          type: 'object',
          properties: {
            value: { type: ['integer', 'null'] },
            next: { anyOf: [{ $ref: '#/$defs/node' }, { type: 'null' }] },
          },
          required: ['value', 'next'],
        },
      },
    });
    expect(read(tree, '{"value":1,"next":{"value":null,"next":null}}')).toBe('yes');
    expect(read(tree, '{"value":1,"next":2}')).toBe('no');
  });
});

describe('schemas', () => {
  test.each([
    [{ type: 'string', pattern: 'a' }, 'schema.pattern'],
    [{ type: 'object', properties: { a: { type: 'string', format: 'date' } } }, 'schema.properties.a.format'],
    [{ type: 'thing' }, 'schema.type'],
    [{ allOf: [] }, 'schema.allOf'],
    [{ $ref: 'https://example.org/x' }, 'schema.$ref'],
    [{ $ref: '#/$defs/none' }, 'schema.$ref'],
    [{ $ref: '#/%zz' }, 'schema.$ref'],
    [{ anyOf: [{ $ref: '#' }] }, 'schema'],
    [{ type: 'string', minLength: 3, maxLength: 2 }, 'schema.minLength'],
    [{ required: ['a'], additionalProperties: false }, 'schema.required'],
    [{ enum: [] }, 'schema.enum'],
  ])('%j is refused at %s', (schema, param) => {
    expect(() => compile(schema)).toThrow(expect.objectContaining({ code: 'invalid_input', param }));
  });

  test(`more than ${MAX_SCHEMA_DEPTH} levels are refused`, () => {
    let schema: object = { type: 'string' };
    for (let i = 0; i <= MAX_SCHEMA_DEPTH; i++) schema = { type: 'array', items: schema };
    expect(() => compile(schema)).toThrow(/levels/);
  });

  test(`references that multiply alternatives beyond ${MAX_SCHEMA_WAYS} are refused, and take no time`, () => {
    const multiplied = (levels: number, each: number) => {
      const $defs: Record<string, object> = { [`d${levels}`]: { type: 'string' } };
      for (let i = 0; i < levels; i++)
        $defs[`d${i}`] = { anyOf: Array.from({ length: each }, () => ({ $ref: `#/$defs/d${i + 1}` })) };
      return { $defs, $ref: '#/$defs/d0' };
    };
    expect(() => compile(multiplied(14, 30))).toThrow(/multiply/);
    expect(() => compile(multiplied(4, 10))).not.toThrow();
  });
});

const SCHEMAS: Record<string, object> = {
  strings: { type: 'object', properties: { name: { type: 'string', maxLength: 12 } }, required: ['name'] },
  numbers: {
    type: 'object',
    properties: { x: { type: 'number' }, n: { type: 'integer' } },
    required: ['x', 'n'],
  },
  enumerations: {
    type: 'object',
    properties: {
      colour: { enum: ['red', 'green', 'blue'] },
      on: { type: 'boolean' },
      none: { const: null },
    },
    required: ['colour', 'on', 'none'],
  },
  arrays: { type: 'array', items: { type: 'integer' }, minItems: 2, maxItems: 4 },
  nested: {
    type: 'object',
    properties: {
      a: {
        type: 'object',
        properties: {
          b: {
            type: 'array',
            items: { type: 'object', properties: { c: { type: 'boolean' } }, required: ['c'] },
            maxItems: 3,
          },
        },
        required: ['b'],
      },
    },
    required: ['a'],
    additionalProperties: false,
  },
  optional: {
    type: 'object',
    properties: { a: { type: 'boolean' }, b: { type: 'boolean' }, c: { type: 'boolean' } },
    required: ['b'],
  },
  unions: {
    type: 'object',
    properties: { v: { anyOf: [{ type: 'string', maxLength: 5 }, { type: 'integer' }, { type: 'null' }] } },
    required: ['v'],
  },
};

describe('a model of random weights', () => {
  let engine: ModelEngine;
  beforeAll(async () => {
    engine = await tinyEngine('wasm', { untied: true });
  });

  async function answer(shape: Shape, seed: number, maxTokens: number) {
    const cache = engine.createCache(DEFAULT_CACHE);
    const { ids } = engine.template.encode([{ role: 'user', content: 'JSON!' }], {
      addGenerationPrompt: true,
    });
    const constraint = new JsonConstraint(shape, engine.tokenizer, engine.eosIds);
    const sampling = { ...GREEDY, temperature: seed === 0 ? 0 : 1.5, seed };
    let text = '';
    let reason = '';
    for await (const event of generate(engine, cache, ids, { sampling, stop: [], maxTokens, constraint })) {
      if (event.type !== 'prefill') text += event.text;
      if (event.type === 'finish') reason = event.reason;
    }
    cache.dispose();
    return { text, reason };
  }

  test.each(Object.entries(SCHEMAS))('writes what is valid: %s', async (_name, schema) => {
    for (let seed = 0; seed < 8; seed++) {
      const { text, reason } = await answer(compile(schema), seed, 400);
      expect([seed, text, reason]).toEqual([seed, text, 'stop']);
      expect([text, violations(schema, JSON.parse(text))]).toEqual([text, []]);
    }
  });

  test('any object is JSON, or is cut by its length and says so', async () => {
    let whole = 0;
    for (let seed = 1; seed <= 12; seed++) {
      const { text, reason } = await answer(ANY_OBJECT, seed, 120);
      if (reason === 'stop') {
        whole++;
        expect(JSON.parse(text)).toBeTypeOf('object');
      } else {
        expect(reason).toBe('length');
        // Half a character may be held back at the end; all before it could have gone on.
        expect(read(ANY_OBJECT, text.replace(/\ufffd+$/, ''))).not.toBe('no');
      }
    }
    expect(whole).toBeGreaterThan(0);
  });

  test('masking changes nothing of the log-probabilities that are reported', async () => {
    const report = async (constrained: boolean) => {
      const cache = engine.createCache(DEFAULT_CACHE);
      const constraint = constrained
        ? new JsonConstraint(ANY_OBJECT, engine.tokenizer, engine.eosIds)
        : undefined;
      const options = { sampling: { ...GREEDY, topLogprobs: 3 }, stop: [], maxTokens: 1, constraint };
      const { ids } = engine.template.encode([{ role: 'user', content: 'JSON!' }], {
        addGenerationPrompt: true,
      });
      for await (const event of generate(engine, cache, ids, options))
        if (event.type === 'token') return event;
      throw new Error('no token');
    };
    const [free, bound] = [await report(false), await report(true)];
    expect(bound.top).toEqual(free.top);
    expect(bound.text).toBe('{');
    expect(bound.logprob).toBeLessThanOrEqual(free.logprob!);
  });
});
