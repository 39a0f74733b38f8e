import * as v from 'valibot';
import { MAX_ITEMS_PAGE, MAX_PAGE, MAX_TTL_SECONDS, MIN_TTL_SECONDS } from './limits.ts';
import { check, integer, optional, sessionId, text } from './schema.ts';

/** Parameters in the query of a URL; unknown ones are ignored, as unknown fields of bodies are. */

/** Number('') is 0: an empty parameter is none that was left out. */
const integerText = (low: number, high: number) =>
  v.pipe(
    v.string(),
    v.transform((given) => (given === '' ? Number.NaN : Number(given))),
    integer(low, high),
  );

export const listQuery = v.looseObject({
  limit: optional(integerText(1, MAX_PAGE)),
  after: optional(sessionId),
});
export type ListQuery = v.InferOutput<typeof listQuery>;

export const cacheQuery = v.looseObject({
  layer: optional(integerText(0, 10_000)),
});
export type CacheQuery = v.InferOutput<typeof cacheQuery>;

export const importQuery = v.looseObject({
  id: optional(sessionId),
  ttl_seconds: optional(integerText(MIN_TTL_SECONDS, MAX_TTL_SECONDS)),
  /** foreign: go on from a cache that another backend computed, as it lies. */
  numerics: optional(v.picklist(['foreign'], 'must be foreign, or left out')),
});
export type ImportQuery = v.InferOutput<typeof importQuery>;

/** https://platform.openai.com/docs/api-reference/responses/input-items */
export const itemsQuery = v.looseObject({
  limit: optional(integerText(1, MAX_ITEMS_PAGE)),
  after: optional(text),
  order: optional(v.picklist(['asc', 'desc'], 'must be asc or desc')),
});
export type ItemsQuery = v.InferOutput<typeof itemsQuery>;

export const parseListQuery = (query: unknown): ListQuery => check(listQuery, query);
export const parseCacheQuery = (query: unknown): CacheQuery => check(cacheQuery, query);
export const parseImportQuery = (query: unknown): ImportQuery => check(importQuery, query);
export const parseItemsQuery = (query: unknown): ItemsQuery => check(itemsQuery, query);
