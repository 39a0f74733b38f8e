import { toJsonSchema } from '@valibot/to-json-schema';
import type { GenericSchema } from 'valibot';
import { cacheQuery, importQuery, itemsQuery, listQuery } from './query-schema.ts';
import { responsesSchema } from './responses-schema.ts';
import { chatSchema, forkSchema, sessionSchema } from './schema.ts';

/** What a route takes and gives. Bodies are the schemas that validate. */
interface RouteDoc {
  readonly summary: string;
  /** What the summary would leave out that a caller must know. */
  readonly description?: string;
  readonly body?: GenericSchema;
  /** Whether the body may be left out. */
  readonly bodyOptional?: true;
  readonly query?: GenericSchema;
  /** Of a body that is no JSON. */
  readonly bodyType?: string;
  /** 'stream': JSON, or server-sent events when `stream` is set. */
  readonly answer: 'json' | 'stream' | 'binary' | 'text' | 'html';
  readonly status?: number;
  readonly public?: true;
}

/** Said beside every deletion. https://developers.cloudflare.com/durable-objects/api/sqlite-storage-api/#pitr-point-in-time-recovery-api */
const RESTORABLE =
  'Nothing that this server can read is left. On Cloudflare the platform itself keeps deleted data for 30 days, within which whoever operates the deployment can bring it back (point-in-time recovery).';

/** `METHOD path`, as the application spells it. Those that the application lacks are left out of the document. */
export const ROUTES: Readonly<Record<string, RouteDoc>> = {
  'POST /v1/chat/completions': {
    summary: 'Answer a conversation',
    description:
      "Log-probabilities are those of the model's own distribution over all its tokens, before temperature, penalties and cuts. The header Idempotency-Key names a message that is sent with session_append: sent again under it, it is answered again and not said twice. prompt_cache_key and the header X-Session-Affinity part conversations that begin alike.",
    body: chatSchema,
    answer: 'stream',
  },
  'POST /v1/responses': { summary: 'Create a response', body: responsesSchema, answer: 'stream' },
  'GET /v1/responses/:id': { summary: 'Read a stored response', answer: 'json' },
  'GET /v1/responses/:id/input_items': {
    summary: 'List what a response answered, without its instructions',
    query: itemsQuery,
    answer: 'json',
  },
  'DELETE /v1/responses/:id': {
    summary: 'Delete a response',
    description: `Where others went on from it, its text stays as a part of theirs. ${RESTORABLE}`,
    answer: 'json',
  },
  'GET /v1/models': { summary: 'List the models', answer: 'json' },
  'GET /v1/models/:id': {
    summary: 'Read a model: context length, defaults of sampling and cache',
    answer: 'json',
  },
  'POST /v1/sessions': { summary: 'Create a session', body: sessionSchema, answer: 'json', status: 201 },
  'GET /v1/sessions': { summary: "List the key's own sessions", query: listQuery, answer: 'json' },
  'GET /v1/sessions/:id': { summary: 'Read a session: tokens, bytes, ratio, last use', answer: 'json' },
  'DELETE /v1/sessions/:id': {
    summary: 'Delete a session and every byte of it',
    description: RESTORABLE,
    answer: 'json',
  },
  'GET /v1/sessions/:id/messages': { summary: 'Read the conversation', answer: 'json' },
  'GET /v1/sessions/:id/cache': {
    summary: 'Read tiers and relevance, layer by layer',
    query: cacheQuery,
    answer: 'json',
  },
  'POST /v1/sessions/:id/fork': {
    summary: 'Copy a session; the copy goes on apart',
    body: forkSchema,
    bodyOptional: true,
    answer: 'json',
    status: 201,
  },
  'GET /v1/sessions/:id/export': {
    summary: 'Take a session out, as one checksummed file',
    description:
      'Its checksums find every change by accident. They are no signature: whoever holds the file can change it and make them anew, so take in files only from whom you trust to say what was said.',
    answer: 'binary',
  },
  'POST /v1/sessions/import': {
    summary: 'Bring a session in that was exported',
    description:
      'A cache that another backend computed (WebAssembly, a GPU) is made again from the conversation at the next turn; with numerics=foreign it is gone on from as it lies. The session then says foreign_prefix: those tokens cannot be made again here with the same bits.',
    query: importQuery,
    bodyType: 'application/octet-stream',
    answer: 'json',
    status: 201,
  },
  'GET /health': { summary: 'Whether the server answers, and its model', answer: 'json', public: true },
  'GET /metrics': { summary: 'Counters of the deployment, for Prometheus', answer: 'text' },
  'GET /openapi.json': { summary: 'This document', answer: 'json', public: true },
  'GET /docs': { summary: 'This document as a page', answer: 'html', public: true },
};

type Json = Record<string, unknown>;

/** OpenAPI 3.1. https://spec.openapis.org/oas/v3.1.1 */
export interface OpenApiDocument {
  readonly openapi: string;
  readonly info: { readonly title: string; readonly version: string; readonly description: string };
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>;
  readonly components: Json;
  readonly security: readonly Json[];
}

export interface Operation {
  readonly summary: string;
  readonly description?: string;
  readonly parameters?: readonly Parameter[];
  readonly requestBody?: {
    readonly required: boolean;
    readonly content: Readonly<Record<string, { schema: Json }>>;
  };
  readonly responses: Json;
  readonly security?: readonly Json[];
}

interface Parameter {
  readonly name: string;
  readonly in: 'path' | 'query';
  readonly required: boolean;
  readonly schema: Json;
}

/** @param routes the application's own, so that the document tells what is there */
export function openApiDocument(
  routes: readonly { readonly method: string; readonly path: string }[],
): OpenApiDocument {
  const paths: Record<string, Record<string, Operation>> = {};
  for (const { method, path } of routes) {
    const plain = path.replace(/\{[^}]*\}/g, '');
    const doc = ROUTES[`${method} ${plain}`];
    if (!doc) continue;
    const name = plain.replace(/:(\w+)/g, '{$1}');
    (paths[name] ??= {})[method.toLowerCase()] = operation(doc, name);
  }
  return {
    openapi: '3.1.1',
    info: {
      title: 'ADKVC',
      version: '1',
      description:
        'Long conversations with a small language model. OpenAI-compatible; sessions are the addition.',
    },
    paths,
    components: {
      securitySchemes: { key: { type: 'http', scheme: 'bearer' } },
      schemas: {
        Error: {
          type: 'object',
          required: ['error'],
          properties: {
            error: {
              type: 'object',
              required: ['message', 'type', 'param', 'code'],
              properties: {
                message: { type: 'string' },
                type: { type: 'string' },
                param: { type: ['string', 'null'] },
                code: { type: 'string' },
                data: { type: 'object' },
              },
            },
          },
        },
      },
    },
    security: [{ key: [] }],
  };
}

function operation(doc: RouteDoc, route: string): Operation {
  const path = [...route.matchAll(/\{(\w+)\}/g)].map(([, name]) => name!);
  const parameters: Parameter[] = [
    ...path.map((name) => ({ name, in: 'path' as const, required: true, schema: { type: 'string' } })),
    ...(doc.query ? queryParameters(doc.query) : []),
  ];
  const type = { binary: 'application/octet-stream', text: 'text/plain', html: 'text/html' } as const;
  const content: Json =
    doc.answer === 'json' || doc.answer === 'stream'
      ? { 'application/json': { schema: { type: 'object' } } }
      : { [type[doc.answer]]: { schema: { type: 'string' } } };
  if (doc.answer === 'stream') content['text/event-stream'] = { schema: { type: 'string' } };
  const requestBody = doc.body
    ? { 'application/json': { schema: jsonSchema(doc.body) } }
    : doc.bodyType
      ? { [doc.bodyType]: { schema: { type: 'string', format: 'binary' } } }
      : undefined;
  return {
    summary: doc.summary,
    ...(doc.description !== undefined && { description: doc.description }),
    ...(parameters.length > 0 && { parameters }),
    ...(requestBody && { requestBody: { required: !doc.bodyOptional, content: requestBody } }),
    responses: {
      [doc.status ?? 200]: { description: 'Done', content },
      default: {
        description: 'An error',
        content: { 'application/json': { schema: { $ref: '#/components/schemas/Error' } } },
      },
    },
    ...(doc.public && { security: [] }),
  };
}

/** None is required, and what they are read as is their schema: a number is one. */
function queryParameters(schema: GenericSchema): Parameter[] {
  const { properties } = toJsonSchema(schema, { typeMode: 'output', errorMode: 'ignore' });
  return Object.entries(properties as Record<string, { anyOf: [Json, Json] }>).map(([name, { anyOf }]) => ({
    name,
    in: 'query',
    required: false,
    // The other one is null, which only a body can hold.
    schema: anyOf[0],
  }));
}

/** What a client sends: the schema before its transformations. Checks that JSON Schema cannot express are left to the messages of errors. */
function jsonSchema(schema: GenericSchema): Json {
  const {
    $schema: _,
    $defs: __,
    ...rest
  } = toJsonSchema(schema, {
    target: 'draft-2020-12',
    typeMode: 'input',
    errorMode: 'ignore',
    // Fields that are a text or a list choose their schema by what is given, for the sake of their errors.
    overrideSchema: ({ valibotSchema }) =>
      valibotSchema.type === 'lazy'
        ? {
            anyOf: ['', []].map((given) =>
              jsonSchema((valibotSchema as unknown as LazySchema).getter(given)),
            ),
          }
        : undefined,
  });
  return rest;
}

type LazySchema = { readonly getter: (given: unknown) => GenericSchema };
