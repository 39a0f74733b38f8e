import { expect, test } from 'vitest';
import { Scheduler, SILENT_TURN_MS, SILENT_WAITER_MS, type Tenant } from '../../src/session/scheduler.ts';
import { pause } from '../helpers/sessions.ts';

/** `bytes` of kernel memory shared by tenants, as an engine's arena is. */
function memory(bytes: number) {
  const tenants: FakeTenant[] = [];
  class FakeTenant implements Tenant {
    residentBytes = 0;
    forgotten = 0;
    readonly name: string;
    readonly lastUsedAt: number;
    readonly implicit: boolean;
    key: string;
    constructor(name: string, lastUsedAt = 0, implicit = false) {
      this.name = name;
      this.key = name;
      this.lastUsedAt = lastUsedAt;
      this.implicit = implicit;
      tenants.push(this);
    }
    forget(): void {
      this.residentBytes = 0;
      this.forgotten++;
    }
    abandon(): void {
      this.forget();
    }
  }
  const engine = {
    get availableBytes() {
      return bytes - tenants.reduce((sum, tenant) => sum + tenant.residentBytes, 0);
    },
  };
  return { engine, tenant: (...args: ConstructorParameters<typeof FakeTenant>) => new FakeTenant(...args) };
}

/** A turn that grows its tenant to `bytes` and leaves it idle. */
async function visit(
  scheduler: Scheduler,
  engine: { availableBytes: number },
  tenant: Tenant,
  bytes: number,
) {
  const lease = await scheduler.admit(tenant, engine, bytes);
  (tenant as { residentBytes: number }).residentBytes = bytes;
  lease.release();
}

test('idle caches are forgotten for a turn that needs the room: implicit ones first, then the longest unused, no more than needed', async () => {
  const { engine, tenant } = memory(100);
  const scheduler = new Scheduler({ pause });
  const [old, recent, implicit, fresh] = [
    tenant('old', 1),
    tenant('recent', 2),
    tenant('implicit', 3, true),
    tenant('new', 4),
  ];
  for (const one of [old, recent, implicit]) await visit(scheduler, engine, one, 30);
  await visit(scheduler, engine, fresh, 40);
  expect([old, recent, implicit].map(({ forgotten }) => forgotten)).toEqual([0, 0, 1]);
  await visit(scheduler, engine, implicit, 20);
  expect([old, recent, fresh].map(({ forgotten }) => forgotten)).toEqual([1, 0, 0]);
});

test('a running turn is never forgotten: the next one waits until it ends', async () => {
  const { engine, tenant } = memory(100);
  const scheduler = new Scheduler({ pause });
  const [a, b] = [tenant('a'), tenant('b')];
  const lease = await scheduler.admit(a, engine, 80);
  let admitted = false;
  const second = scheduler.admit(b, engine, 50).then((granted) => {
    admitted = true;
    return granted;
  });
  await pause(40);
  expect(admitted).toBe(false);
  expect(a.forgotten).toBe(0);
  a.residentBytes = 60;
  lease.release();
  (await second).release();
  expect(a.forgotten).toBe(1);
});

test('bounded wait, bounded queue: memory_limit with retryAfter; an aborted waiter leaves', async () => {
  const { engine, tenant } = memory(100);
  const scheduler = new Scheduler({ pause, maxWaiting: 1, maxWaitMs: 60 });
  const lease = await scheduler.admit(tenant('a'), engine, 80);
  const waiting = scheduler.admit(tenant('b'), engine, 50);
  const refused = { code: 'memory_limit', data: { retryAfter: expect.any(Number) } };
  await expect(scheduler.admit(tenant('c'), engine, 50)).rejects.toMatchObject(refused);
  await expect(waiting).rejects.toMatchObject(refused);
  expect(scheduler.waiting).toBe(0);
  const controller = new AbortController();
  const aborted = scheduler.admit(tenant('d'), engine, 50, controller.signal);
  controller.abort();
  await expect(aborted).rejects.toMatchObject({ code: 'aborted' });
  expect(scheduler.waiting).toBe(0);
  lease.release();
  expect(scheduler.running).toBe(0);
});

test('whoever waits is served before those who come later, even if they would fit', async () => {
  const { engine, tenant } = memory(100);
  const scheduler = new Scheduler({ pause });
  const lease = await scheduler.admit(tenant('a'), engine, 60);
  const order: string[] = [];
  const big = scheduler.admit(tenant('big'), engine, 90).then((granted) => {
    order.push('big');
    return granted;
  });
  const small = scheduler.admit(tenant('small'), engine, 10).then((granted) => {
    order.push('small');
    return granted;
  });
  await pause(30);
  expect(order).toEqual([]);
  lease.release();
  (await big).release();
  (await small).release();
  expect(order).toEqual(['big', 'small']);
});

test('memory that a waiter gets is taken at once: who asks right then waits', async () => {
  const { engine, tenant } = memory(100);
  const scheduler = new Scheduler({ pause });
  const first = await scheduler.admit(tenant('a'), engine, 60);
  let third: Promise<unknown> | undefined;
  const asking = {
    get availableBytes() {
      // Runs between the waiter's last look and its continuation.
      if (scheduler.running === 0) queueMicrotask(() => (third ??= scheduler.admit(tenant('c'), engine, 60)));
      return engine.availableBytes;
    },
  };
  const waiting = scheduler.admit(tenant('b'), asking, 60);
  await pause(0);
  first.release();
  const second = await waiting;
  await pause(0);
  expect(third).toBeDefined();
  expect([scheduler.running, scheduler.waiting]).toEqual([1, 1]);
  second.release();
  await third;
  expect(scheduler.running).toBe(1);
});

test('turns alternate, and one that comes later is not owed what the others had before', async () => {
  const { engine, tenant } = memory(100);
  const scheduler = new Scheduler({ pause });
  const order: string[] = [];
  const run = async (name: string, slices: number) => {
    const lease = await scheduler.admit(tenant(name), engine, 10);
    for (let i = 0; i < slices; i++) {
      order.push(name);
      await lease.yield();
    }
    lease.release();
  };
  const first = run('a', 60);
  for (let i = 0; i < 20; i++) await pause(0);
  await Promise.all([first, run('b', 30)]);
  const begin = order.indexOf('b');
  expect(begin).toBeGreaterThan(5);
  const both = order.slice(begin, order.lastIndexOf('b'));
  for (let i = 0; i + 8 <= both.length; i++) {
    const share = both.slice(i, i + 8).filter((name) => name === 'b').length;
    expect(share).toBeGreaterThanOrEqual(3);
    expect(share).toBeLessThanOrEqual(5);
  }
});

test('the successor of an evicted object frees what the object left behind', async () => {
  const { engine, tenant } = memory(100);
  const scheduler = new Scheduler({ pause });
  const [gone, successor, other] = [tenant('a'), tenant('a'), tenant('b')];
  await visit(scheduler, engine, gone, 30);
  await visit(scheduler, engine, other, 30);
  await visit(scheduler, engine, successor, 30);
  expect([gone, successor, other].map(({ residentBytes }) => residentBytes)).toEqual([0, 30, 30]);
});

test('a turn whose object was reset: its successor frees it, and should it move again it is told', async () => {
  const { engine, tenant } = memory(100);
  const scheduler = new Scheduler({ pause });
  const [gone, successor] = [tenant('a'), tenant('a')];
  const dead = await scheduler.admit(gone, engine, 80);
  gone.residentBytes = 80;
  const lease = await scheduler.admit(successor, engine, 80);
  expect([gone.residentBytes, scheduler.running]).toEqual([0, 1]);
  await expect(dead.yield()).rejects.toMatchObject({ code: 'turn_interrupted' });
  expect(dead.check).toThrow();
  dead.release();
  expect(scheduler.running).toBe(1);
  await lease.yield();
  lease.release();
  expect(scheduler.running).toBe(0);
});

test('turns and waiters that are silent for long are taken for dead: nobody waits behind them for ever', async () => {
  const { engine, tenant } = memory(100);
  let now = 0;
  const stopped = new Set<string>();
  // A reset object's waits never end.
  const pauseOf = (name: string) => async (ms: number) => {
    if (stopped.has(name)) await new Promise(() => {});
    await pause(ms);
  };
  let who = 'waiter';
  const scheduler = new Scheduler({ pause: (ms) => pauseOf(who)(ms), now: () => now, maxWaitMs: 1e9 });
  const [dead, alive] = [tenant('dead'), tenant('alive')];
  await scheduler.admit(dead, engine, 60);
  dead.residentBytes = 60;
  stopped.add('waiter');
  void scheduler.admit(tenant('waiter'), engine, 60);
  await pause(0);
  who = 'alive';
  const admitted = scheduler.admit(alive, engine, 60);
  expect(scheduler.waiting).toBe(2);
  await pause(20);
  now += SILENT_WAITER_MS + 1;
  await expect.poll(() => scheduler.waiting).toBe(1);
  expect(dead.residentBytes).toBe(60);
  now += SILENT_TURN_MS;
  const lease = await admitted;
  expect([dead.residentBytes, scheduler.running, scheduler.waiting]).toEqual([0, 1, 0]);
  lease.release();
});
