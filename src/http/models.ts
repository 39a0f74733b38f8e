import type { Context } from 'hono';
import { type CacheConfig, completeConfig } from '../cache/policy.ts';
import type { Manifest } from '../runtime/manifest.ts';
import { HttpError } from './error-response.ts';

/** The one model that a host serves, as far as HTTP must know it. */
export interface ServedModel {
  readonly id: string;
  /** Other names that clients may ask for it by. */
  readonly aliases: readonly string[];
  readonly contextLength: number;
  readonly weightForm: string;
  readonly fingerprint: string;
  readonly generation: Manifest['generation'];
  /** What a new session's cache gets where the request says nothing. */
  readonly cache: CacheConfig;
}

/** @param cacheBytes what the host gives a conversation's cache unless it asks otherwise */
export const servedModel = (
  manifest: Manifest,
  aliases: readonly string[] = [],
  cacheBytes?: number,
): ServedModel => ({
  id: manifest.model.name,
  aliases,
  contextLength: manifest.model.contextLength,
  weightForm: manifest.weightForm,
  fingerprint: manifest.fingerprint,
  generation: manifest.generation,
  cache: completeConfig({}, cacheBytes),
});

/** @throws HttpError model_not_found, naming what is served */
export function requireModel(model: ServedModel, name: string): void {
  if (name === model.id || model.aliases.includes(name)) return;
  throw new HttpError('model_not_found', `The model "${name}" is not served here; "${model.id}" is.`, {
    param: 'model',
  });
}

export function listModels(c: Context, model: ServedModel): Response {
  return c.json({ object: 'list', data: [model.id, ...model.aliases].map((id) => modelObject(model, id)) });
}

export function getModel(c: Context, model: ServedModel, name: string): Response {
  requireModel(model, name);
  return c.json(modelObject(model, name));
}

function modelObject(model: ServedModel, id: string) {
  return {
    id,
    object: 'model',
    // OpenAI's field is a release date, which a bundle, whose bytes depend on its input alone, does not hold.
    created: 0,
    owned_by: 'adkvc',
    ...(id === model.id ? {} : { alias_of: model.id }),
    context_length: model.contextLength,
    weight_form: model.weightForm,
    fingerprint: model.fingerprint,
    defaults: {
      temperature: model.generation.temperature,
      top_p: model.generation.topP,
      max_tokens: model.generation.maxTokens,
    },
    cache: model.cache,
  };
}
