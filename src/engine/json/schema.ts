import { InvalidInputError } from '../../core/errors.ts';

/** What an answer must look like. A JSON Schema, compiled to what the acceptor walks. */
export type Shape =
  | { readonly type: 'any' }
  /** Lengths in characters (code points). */
  | { readonly type: 'string'; readonly min: number; readonly max: number }
  | { readonly type: 'number'; readonly integer: boolean }
  /** One of these texts, as UTF-8. */
  | { readonly type: 'literal'; readonly texts: readonly Uint8Array[] }
  /** Properties in the schema's order, each once. */
  | { readonly type: 'object'; readonly properties: readonly Property[] }
  /** Any keys. */
  | { readonly type: 'map'; readonly values: Shape }
  | { readonly type: 'array'; readonly items: Shape; readonly min: number; readonly max: number }
  | { readonly type: 'union'; readonly of: readonly Shape[] }
  | { readonly type: 'reference'; readonly to: { shape?: Shape } };

export interface Property {
  /** The key with its quotes and colon. */
  readonly key: Uint8Array;
  readonly value: Shape;
  readonly required: boolean;
}

/** How an answer is constrained. */
export type AnswerFormat =
  | { readonly type: 'json_object' }
  | { readonly type: 'json_schema'; readonly schema: Readonly<Record<string, unknown>> };

export const ANY_OBJECT: Shape = { type: 'map', values: { type: 'any' } };

export const MAX_SCHEMA_DEPTH = 32;
export const MAX_SCHEMA_NODES = 1_000;
/** Alternatives of one value, those of its references included. */
export const MAX_SCHEMA_WAYS = 10_000;

/** Keywords that say nothing about what is valid. */
const ANNOTATIONS = new Set(
  '$schema $id $comment $defs definitions title description default examples deprecated readOnly writeOnly'.split(
    ' ',
  ),
);
const SUPPORTED = new Set(
  'type properties required additionalProperties items minItems maxItems minLength maxLength enum const anyOf oneOf $ref'.split(
    ' ',
  ),
);
const TYPES = ['string', 'number', 'integer', 'boolean', 'null', 'object', 'array'] as const;

type Json = Readonly<Record<string, unknown>>;

/**
 * Compiles a schema. Properties that it does not name are never written (where it names none and allows others, any are); `oneOf` is
 * read as `anyOf`.
 * @param param where the schema stands in the request, for messages
 * @throws InvalidInputError for keywords that the constraint could not hold, by name
 */
export function compileSchema(schema: unknown, param: string): Shape {
  refuseDeepValues(schema, param);
  const references = new Map<string, { shape?: Shape }>();
  const unions: Shape[] = [];
  let nodes = 0;

  function compile(given: unknown, path: string, depth: number): Shape {
    if (given === true) return { type: 'any' };
    if (typeof given !== 'object' || given === null || Array.isArray(given))
      throw new InvalidInputError(`${path} must be a schema: an object`, path);
    if (depth > MAX_SCHEMA_DEPTH || ++nodes > MAX_SCHEMA_NODES)
      throw new InvalidInputError(
        `${path}: the schema is larger than ${MAX_SCHEMA_NODES} schemas or ${MAX_SCHEMA_DEPTH} levels`,
        path,
        { nodes: MAX_SCHEMA_NODES, depth: MAX_SCHEMA_DEPTH },
      );
    const s = given as Json;
    for (const [keyword, value] of Object.entries(s))
      if (!ANNOTATIONS.has(keyword) && !SUPPORTED.has(keyword) && value !== undefined)
        throw new InvalidInputError(
          `${path}.${keyword} is not supported: leave it out (supported: ${[...SUPPORTED].join(', ')})`,
          `${path}.${keyword}`,
        );
    if (s.$ref !== undefined) return reference(s.$ref, `${path}.$ref`, depth);
    if (s.const !== undefined || 'const' in s) return literal([s.const], `${path}.const`);
    if (s.enum !== undefined) return literal(list(s.enum, `${path}.enum`), `${path}.enum`);
    for (const keyword of ['anyOf', 'oneOf'])
      if (s[keyword] !== undefined)
        return union(
          list(s[keyword], `${path}.${keyword}`).map((one, i) =>
            compile(one, `${path}.${keyword}[${i}]`, depth + 1),
          ),
        );
    const types = s.type === undefined ? [implied(s)] : Array.isArray(s.type) ? s.type : [s.type];
    if (types.length === 0) throw new InvalidInputError(`${path}.type names no type`, `${path}.type`);
    const shapes = types.map((type) => ofType(type, s, path, depth));
    return shapes.length === 1 ? shapes[0]! : union(shapes);
  }

  function union(of: readonly Shape[]): Shape {
    const shape: Shape = { type: 'union', of };
    unions.push(shape);
    return shape;
  }

  function ofType(type: unknown, s: Json, path: string, depth: number): Shape {
    switch (type) {
      case 'any':
        return { type: 'any' };
      case 'string': {
        const [min, max] = range(s, 'minLength', 'maxLength', path);
        return { type: 'string', min, max };
      }
      case 'number':
      case 'integer':
        return { type: 'number', integer: type === 'integer' };
      case 'boolean':
        return literal([true, false], path);
      case 'null':
        return literal([null], path);
      case 'array': {
        const [min, max] = range(s, 'minItems', 'maxItems', path);
        const items =
          s.items === undefined ? { type: 'any' as const } : compile(s.items, `${path}.items`, depth + 1);
        return { type: 'array', items, min, max };
      }
      case 'object':
        return objectShape(s, path, depth);
      default:
        throw new InvalidInputError(`${path}.type must be one of ${TYPES.join(', ')}`, `${path}.type`);
    }
  }

  function objectShape(s: Json, path: string, depth: number): Shape {
    const required = s.required === undefined ? [] : list(s.required, `${path}.required`, 0);
    const given = s.properties ?? {};
    if (typeof given !== 'object' || given === null || Array.isArray(given))
      throw new InvalidInputError(`${path}.properties must be an object`, `${path}.properties`);
    const others = s.additionalProperties ?? true;
    const names = [...new Set([...Object.keys(given), ...required])];
    if (names.length === 0 && others !== false)
      return { type: 'map', values: compile(others, `${path}.additionalProperties`, depth + 1) };
    return {
      type: 'object',
      properties: names.map((name) => {
        if (typeof name !== 'string')
          throw new InvalidInputError(`${path}.required must hold strings`, `${path}.required`);
        const own = Object.hasOwn(given, name) ? (given as Json)[name] : others;
        if (own === false)
          throw new InvalidInputError(`${path}: "${name}" is required and forbidden`, `${path}.required`);
        return {
          key: utf8.encode(`${JSON.stringify(name)}:`),
          value: compile(own, `${path}.properties.${name}`, depth + 1),
          required: required.includes(name),
        };
      }),
    };
  }

  function reference(to: unknown, path: string, depth: number): Shape {
    if (typeof to !== 'string' || !/^#(\/|$)/.test(to))
      throw new InvalidInputError(`${path} must begin with "#": other documents are not read`, path);
    const known = references.get(to);
    if (known) return { type: 'reference', to: known };
    const entry: { shape?: Shape } = {};
    references.set(to, entry);
    let target: unknown = schema;
    for (const part of to.split('/').slice(1)) {
      const name = unescaped(part, path).replaceAll('~1', '/').replaceAll('~0', '~');
      target =
        typeof target === 'object' && target !== null && Object.hasOwn(target, name)
          ? (target as Json)[name]
          : undefined;
    }
    if (target === undefined) throw new InvalidInputError(`${path}: there is no ${to}`, path);
    entry.shape = compile(target, `${param}${to.slice(1).replaceAll('/', '.')}`, depth + 1);
    return { type: 'reference', to: entry };
  }

  const shape = compile(schema, param, 0);
  const known = new Map<Shape, number>();
  for (const { shape: target } of references.values()) countWays(target!, param, known);
  for (const one of unions) countWays(one, param, known);
  return shape;
}

const utf8 = new TextEncoder();

function unescaped(part: string, path: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    throw new InvalidInputError(`${path} holds a "%" that begins no escape: write it as %25`, path);
  }
}

/** Also what no keyword reads is written as JSON later on, recursively. */
function refuseDeepValues(schema: unknown, param: string): void {
  try {
    JSON.stringify(schema);
  } catch {
    throw new InvalidInputError(`${param} is nested too deeply`, param, { depth: MAX_SCHEMA_DEPTH });
  }
}

/**
 * In how many ways a value of the shape may begin: each is tried with every byte, and unions of references multiply them.
 * @param known what was counted before; 0 while it is being counted: a reference that leads back to itself before anything is written could be followed for ever
 */
function countWays(shape: Shape, param: string, known: Map<Shape, number>): number {
  const before = known.get(shape);
  if (before === 0) throw new InvalidInputError(`${param}: a $ref leads back to itself`, param);
  if (before !== undefined) return before;
  known.set(shape, 0);
  let ways = 1;
  if (shape.type === 'literal') ways = shape.texts.length;
  if (shape.type === 'reference') ways = countWays(shape.to.shape!, param, known);
  if (shape.type === 'union') {
    ways = 0;
    for (const one of shape.of) ways += countWays(one, param, known);
    if (ways > MAX_SCHEMA_WAYS)
      throw new InvalidInputError(
        `${param}: references and alternatives multiply to more than ${MAX_SCHEMA_WAYS} ways to begin a value`,
        param,
        { ways: MAX_SCHEMA_WAYS },
      );
  }
  known.set(shape, Math.max(1, ways));
  return ways;
}

const literal = (values: readonly unknown[], path: string): Shape => ({
  type: 'literal',
  texts: values.map((value) => {
    const text = JSON.stringify(value);
    if (text === undefined) throw new InvalidInputError(`${path} must hold JSON values`, path);
    return utf8.encode(text);
  }),
});

function list(value: unknown, path: string, min = 1): readonly unknown[] {
  if (!Array.isArray(value) || value.length < min)
    throw new InvalidInputError(`${path} must be an array${min > 0 ? ' that is not empty' : ''}`, path);
  return value;
}

function range(s: Json, low: string, high: string, path: string): [number, number] {
  const bound = (name: string, fallback: number): number => {
    const value = s[name] ?? fallback;
    if (value !== fallback && !(Number.isSafeInteger(value) && (value as number) >= 0))
      throw new InvalidInputError(`${path}.${name} must be an integer from 0`, `${path}.${name}`);
    return value as number;
  };
  const [min, max] = [bound(low, 0), bound(high, Number.POSITIVE_INFINITY)];
  if (min > max) throw new InvalidInputError(`${path}.${low} is above ${high}`, `${path}.${low}`);
  return [min, max];
}

/** The type that the keywords speak of, where none is named. */
const implied = (s: Json): string => {
  if (s.properties !== undefined || s.required !== undefined || s.additionalProperties !== undefined)
    return 'object';
  if (s.items !== undefined || s.minItems !== undefined || s.maxItems !== undefined) return 'array';
  if (s.minLength !== undefined || s.maxLength !== undefined) return 'string';
  return 'any';
};

export const shapeOf = (format: AnswerFormat, param = 'schema'): Shape =>
  format.type === 'json_object' ? ANY_OBJECT : compileSchema(format.schema, param);
