import type { ModelConfig } from '../core/config.ts';
import { InvalidInputError } from '../core/errors.ts';
import type { PlanInstances } from '../kernels/wasm-plan.ts';
import { adkvc } from './policies/adkvc.ts';
import { adkvcAdapted, adkvcEvict, adkvcFixed, adkvcQuantize } from './policies/adkvc-forms.ts';
import { dynamickv } from './policies/dynamickv.ts';
import { fastkv } from './policies/fastkv.ts';
import { full } from './policies/full.ts';
import { h2o } from './policies/h2o.ts';
import { oneShot } from './policies/one-shot.ts';
import { pyramidkv } from './policies/pyramidkv.ts';
import { withQuotas } from './policies/quotas.ts';
import { random } from './policies/random.ts';
import { snapkv } from './policies/snapkv.ts';
import { tova } from './policies/tova.ts';
import { uniform, uniformInt4, uniformInt8 } from './policies/uniform.ts';
import { window } from './policies/window.ts';
import type { CacheConfig, Policy } from './policy.ts';
import type { HeadProfile } from './profile.ts';

/** @param instances where WebAssembly may make plans, to the same bits */
export type PolicyFactory = (
  config: CacheConfig,
  model: ModelConfig,
  profile?: HeadProfile,
  instances?: PlanInstances,
) => Policy;

/** Factories, not instances. To add a policy: one file in policies/, one line here. */
export const POLICIES: Readonly<Record<string, PolicyFactory>> = {
  adkvc,
  'adkvc-adapted': adkvcAdapted,
  'adkvc-evict': adkvcEvict,
  'adkvc-fixed': adkvcFixed,
  'adkvc-quantize': adkvcQuantize,
  dynamickv,
  fastkv,
  full,
  h2o,
  pyramidkv,
  random,
  snapkv,
  tova,
  uniform,
  'uniform-int4': uniformInt4,
  'uniform-int8': uniformInt8,
  window,
};

/** Published for one compression after a prompt, and made for that alone: not for conversations. */
export const ONE_SHOT_ONLY: ReadonlySet<string> = new Set(['fastkv']);
/** What a conversation can be held under. */
export const STREAMING_POLICIES: readonly string[] = Object.keys(POLICIES).filter(
  (name) => !ONE_SHOT_ONLY.has(name),
);

export const MIN_RATIO = 1;
export const MAX_RATIO = 64;

/** @throws InvalidInputError naming the field and what would be right. */
export function createPolicy(
  config: CacheConfig,
  model: ModelConfig,
  profile?: HeadProfile,
  instances?: PlanInstances,
): Policy {
  const factory = POLICIES[config.policy];
  if (!factory)
    throw new InvalidInputError(
      `unknown policy "${config.policy}": use one of ${Object.keys(POLICIES).join(', ')}`,
      'policy',
    );
  if (config.ratio !== undefined && config.bytes !== undefined)
    throw new InvalidInputError('give ratio or bytes, not both', 'ratio');
  if (config.ratio !== undefined && !(config.ratio >= MIN_RATIO && config.ratio <= MAX_RATIO))
    throw new InvalidInputError(`ratio must lie between ${MIN_RATIO} and ${MAX_RATIO}`, 'ratio');
  if (config.bytes !== undefined && !(Number.isInteger(config.bytes) && config.bytes > 0))
    throw new InvalidInputError('bytes must be a positive integer', 'bytes');
  for (const field of ['window', 'sinks'] as const) {
    const value = config[field];
    if (!Number.isInteger(value) || value < 0 || value > 1024)
      throw new InvalidInputError(`${field} must be an integer from 0 to 1024`, field);
  }
  if (config.oneShot !== undefined && !(Number.isInteger(config.oneShot) && config.oneShot > 0))
    throw new InvalidInputError('oneShot must be the tokens of a prompt', 'oneShot');
  if (config.quotas !== undefined && ONE_SHOT_ONLY.has(config.policy))
    throw new InvalidInputError(`quotas are for conversations, policy ${config.policy} is not`, 'quotas');
  if (config.window + config.sinks < 1)
    throw new InvalidInputError('window and sinks cannot both be 0', 'window');
  if (!Number.isInteger(config.seed) || config.seed < 0 || config.seed > 0xffff_ffff)
    throw new InvalidInputError('seed must be an integer from 0 to 4294967295', 'seed');
  const own = factory(config, model, config.useProfile === false ? undefined : profile, instances);
  const policy = config.quotas === undefined ? own : withQuotas(own, config.quotas);
  return config.oneShot === undefined ? policy : oneShot(policy, config);
}
