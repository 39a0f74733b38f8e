import { InvalidInputError } from '../../core/errors.ts';
import { DROP, TIERS, tierNamed } from '../../kernels/layout.ts';
import { lastOf, planBytes } from '../allocate.ts';
import { type MessageSpan, SPAN_CLASSES, type SpanClass } from '../messages.ts';
import {
  type ByteBudget,
  type CacheView,
  FRESH,
  type Plan,
  type Policy,
  type SegmentView,
} from '../policy.ts';

/** A share of each message of a class that no head holds more coarsely than a tier. */
export interface Quota {
  readonly class: SpanClass;
  /** 0 to 1. */
  readonly share: number;
  readonly tier: number;
}

/** As in `system=4,4 documents=25%:2,1`: a class, perhaps a share, and the coarsest tier. @throws InvalidInputError */
export function parseQuotas(text: string): Quota[] {
  const names = TIERS.filter((tier) => !tier.plain && tier.kBits <= 16).map((tier) => tier.name);
  const quotas = text.split(' ').map((part): Quota => {
    const [, name, share = '100', tier] = /^([a-z]+)=(?:([\d.]+)%:)?([\w,]+)$/.exec(part) ?? [];
    const known = SPAN_CLASSES.find((c) => c === name);
    const percent = Number(share);
    if (!known || !names.includes(tier!) || !(percent > 0 && percent <= 100))
      throw new InvalidInputError(
        `quotas says "${part}": write ${SPAN_CLASSES.join(' | ')}, =, perhaps a share as in 25%:, and a tier (${names.join(' | ')}), as in system=4,4 documents=25%:2,1`,
        'quotas',
      );
    return { class: known, share: percent / 100, tier: tierNamed(tier!) };
  });
  if (new Set(quotas.map((q) => q.class)).size < quotas.length)
    throw new InvalidInputError('quotas may name each class once', 'quotas');
  return quotas;
}

/** Messages of which every token has a quota. */
export function quotedSpans(view: CacheView, text: string): MessageSpan[] {
  const whole = parseQuotas(text).filter(({ share }) => share === 1);
  return (view.messages ?? []).filter((span) => whole.some((quota) => quota.class === span.class));
}

/** A plan need not fill more of the budget than this. */
const FULL = 0.985;
/** Plans that are made at most under one set of quotas. */
const TRIES = 12;

/**
 * Another policy, whose plans are raised to the quotas of the conversation's messages; it gets so much less of the budget that all fits. Where quotas
 * cannot all be met within the budget, those named last give way. What was lost before a quota spoke for it (a turn that has grown to a document) stays lost.
 */
export function withQuotas(policy: Policy, text: string): Policy {
  const quotas = parseQuotas(text);
  if (policy.needs.plain || policy.name === 'uniform' || policy.name === 'full')
    throw new InvalidInputError(
      `policy ${policy.name} holds all tokens alike: quotas need one that chooses, as adkvc`,
      'quotas',
    );
  const mass = policy.needs.mass !== undefined;

  function* raised(view: CacheView, recordBytes: number, active: readonly Quota[], from: number) {
    const steps = policy.planSteps?.(view, { recordBytes });
    let plan: Plan | undefined = steps ? undefined : policy.plan(view, { recordBytes });
    while (!plan) {
      const step = steps!.next();
      if (step.done) plan = step.value;
      else yield from + ((1 - from) / 2) * step.value;
    }
    const own = raise(view, plan, active);
    return { plan: own, bytes: planBytes(view, own, mass) };
  }

  function* planSteps(view: CacheView, budget: ByteBudget): Generator<number, Plan> {
    // Half of what is left is done with each plan: how many it takes is not known before.
    let done = 0;
    const next = (): number => {
      done += (1 - done) / 2;
      return done;
    };
    const whole = budget.recordBytes;
    if (policy.bounded === false || whole === Number.POSITIVE_INFINITY)
      return (yield* raised(view, whole, quotas, done)).plan;
    for (let count = quotas.length; count > 0; count--) {
      const active = quotas.slice(0, count);
      let high = whole;
      let made = yield* raised(view, high, active, done);
      if (made.bytes <= whole) return made.plan;
      let inner = Math.max(0, high - (made.bytes - whole));
      yield next();
      let low = 0;
      let best = yield* raised(view, low, active, done);
      yield next();
      if (best.bytes > whole) continue;
      for (let i = 0; i < TRIES && best.bytes < FULL * whole && high - low > 1; i++) {
        if (!(inner > low && inner < high)) inner = (low + high) / 2;
        made = yield* raised(view, inner, active, done);
        yield next();
        if (made.bytes <= whole) {
          best = made;
          low = inner;
          inner = (low + high) / 2;
        } else {
          // Plans come in steps, so that a little less may change nothing: ever longer strides.
          high = inner;
          inner -= (made.bytes - whole) * 2 ** i;
        }
      }
      return best.plan;
    }
    return (yield* raised(view, whole, [], done)).plan;
  }

  const finest =
    policy.finest === undefined ? undefined : Math.min(policy.finest, ...quotas.map((q) => q.tier));
  return {
    ...policy,
    ...(finest !== undefined && { finest }),
    planSteps,
    plan: (view, budget) => lastOf(planSteps(view, budget)),
  };
}

/** The plan with every message's share held at least as finely as its quota says, as far as it still is. */
function raise(view: CacheView, plan: Plan, quotas: readonly Quota[]): Plan {
  const tiers = plan.tiers.map((own) => own.slice());
  for (const span of view.messages ?? []) {
    const quota = quotas.find((q) => q.class === span.class);
    if (!quota) continue;
    for (let head = 0; head < view.layers * view.kvHeads; head++)
      for (const { s, at } of best(view, plan, span, head, quota.share)) {
        const old = view.segments[s]!.tiers[at]!;
        const floor = old === FRESH ? quota.tier : Math.max(old, quota.tier);
        if (tiers[s]![at]! > floor) tiers[s]![at] = floor;
      }
  }
  return { tiers };
}

interface Cell {
  readonly s: number;
  readonly at: number;
}

/** Of a head's tokens of a message, a share: what the plan holds most finely, then what was attended to most, then the newest. */
function best(view: CacheView, plan: Plan, span: MessageSpan, head: number, share: number): Cell[] {
  const cells: Cell[] = [];
  let total = 0;
  view.segments.forEach((segment, s) => {
    const [from, to] = overlap(segment, span);
    total += Math.max(0, to - from);
    for (let i = from; i < to; i++) {
      const at = head * segment.tokens + i;
      if (segment.tiers[at] !== DROP) cells.push({ s, at });
    }
  });
  const count = Math.ceil(share * total);
  if (count >= cells.length) return cells;
  const massOf = ({ s, at }: Cell): number => view.segments[s]!.mass?.[at] ?? 0;
  return cells
    .map((cell, order) => ({ cell, order, tier: plan.tiers[cell.s]![cell.at]!, mass: massOf(cell) }))
    .sort((a, b) => a.tier - b.tier || b.mass - a.mass || b.order - a.order)
    .slice(0, count)
    .map(({ cell }) => cell);
}

/** The segment's tokens that belong to a message: indices [from, to). */
const overlap = ({ start, tokens }: SegmentView, span: MessageSpan): [number, number] => [
  Math.max(0, span.start - start),
  Math.min(tokens, span.end - start),
];
