import { AdkvcError } from '../core/errors.ts';
import type { WireError } from './api.ts';

/** Anything thrown, as JSON. What is no AdkvcError is a fault of ours: code internal_error. */
export function toWire(error: unknown): WireError {
  if (error instanceof AdkvcError)
    return {
      code: error.code,
      message: error.message,
      ...(error.param === undefined ? {} : { param: error.param }),
      ...(Object.keys(error.data).length === 0 ? {} : { data: { ...error.data } }),
    };
  return { code: 'internal_error', message: error instanceof Error ? error.message : String(error) };
}

export function fromWire(error: WireError): AdkvcError {
  return new AdkvcError(error.code, error.message, { param: error.param, data: error.data });
}
