import type { ModelConfig } from '../core/config.ts';
import { CorruptDataError } from '../core/errors.ts';

/**
 * How much harm errors in each head's cache do, measured once a model (`adkvc calibrate`). Lists are [layers][kvHeads], in nats: the
 * divergence of the next-token distribution when that head alone has all its old keys or values at 2 bits, or dropped. Sensitivities differ by
 * a factor of a thousand between heads, which no attention weight shows.
 */
export interface HeadProfile {
  readonly fingerprint: string;
  readonly keys: Float64Array;
  readonly values: Float64Array;
  readonly drop: Float64Array;
  /** Rise of the answer's negative log-likelihood a token in needle prompts when the head drops its past. */
  readonly needle: Float64Array;
}

/** The profile as a file. */
export interface ProfileFile {
  readonly format: typeof PROFILE_FORMAT;
  readonly version: typeof PROFILE_VERSION;
  readonly model: { readonly name: string; readonly layers: number; readonly kvHeads: number };
  /** sha256 of the model file that was measured. */
  readonly source: string;
  /** How it was measured, for the reader. */
  readonly measured: Readonly<Record<string, number | string>>;
  readonly keys: readonly number[];
  readonly values: readonly number[];
  readonly drop: readonly number[];
  readonly needle: readonly number[];
}
export const PROFILE_FORMAT = 'adkvc-profile';
export const PROFILE_VERSION = 1;

/**
 * Checks a profile file against the model.
 * @param fingerprint names the file's contents (their sha256): stored with every cache that was compressed under the profile
 */
export function parseProfile(
  json: unknown,
  model: Pick<ModelConfig, 'layers' | 'kvHeads'>,
  fingerprint: string,
): HeadProfile {
  const file = json as Partial<ProfileFile> | null;
  if (file?.format !== PROFILE_FORMAT || file.version !== PROFILE_VERSION)
    throw new CorruptDataError(`not a head profile of version ${PROFILE_VERSION}`);
  const heads = model.layers * model.kvHeads;
  const list = (name: 'keys' | 'values' | 'drop' | 'needle'): Float64Array => {
    const values = file[name];
    if (!Array.isArray(values) || values.length !== heads)
      throw new CorruptDataError(
        `the head profile's ${name} must have ${heads} numbers (${model.layers} layers of ${model.kvHeads} heads)`,
      );
    for (const x of values)
      if (!(Number.isFinite(x) && x >= 0)) throw new CorruptDataError(`the head profile's ${name} has ${x}`);
    return Float64Array.from(values as number[]);
  };
  return {
    fingerprint,
    keys: list('keys'),
    values: list('values'),
    drop: list('drop'),
    needle: list('needle'),
  };
}
