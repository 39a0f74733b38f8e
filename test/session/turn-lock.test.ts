import { expect, test } from 'vitest';
import { TurnLock } from '../../src/session/turn-lock.ts';

const tick = () => new Promise((resolve) => setImmediate(resolve));

test('one holder at a time, first in first out', async () => {
  const lock = new TurnLock(10);
  const order: string[] = [];
  const work = async (name: string) => {
    const release = await lock.acquire();
    order.push(`${name} in`);
    await tick();
    order.push(`${name} out`);
    release();
    release();
  };
  await Promise.all([work('a'), work('b'), work('c')]);
  expect(order).toEqual(['a in', 'a out', 'b in', 'b out', 'c in', 'c out']);
  expect(lock.held).toBe(false);
});

test('whoever asks while the lock changes hands does not get in front', async () => {
  const lock = new TurnLock();
  const release = await lock.acquire();
  const order: string[] = [];
  const waiter = lock.acquire().then((done) => {
    order.push('waiter');
    done();
  });
  release();
  const late = lock.acquire().then((done) => {
    order.push('late');
    done();
  });
  await Promise.all([waiter, late]);
  expect(order).toEqual(['waiter', 'late']);
});

test('too many waiters: session_busy with retryAfter, and the others are served', async () => {
  const lock = new TurnLock(1);
  const release = await lock.acquire();
  const waiter = lock.acquire();
  await expect(lock.acquire()).rejects.toMatchObject({
    code: 'session_busy',
    data: { retryAfter: expect.any(Number) },
  });
  release();
  (await waiter)();
});

test('an aborted waiter leaves its place to the next', async () => {
  const lock = new TurnLock(1);
  const release = await lock.acquire();
  const controller = new AbortController();
  const gone = lock.acquire(controller.signal);
  controller.abort();
  await expect(gone).rejects.toMatchObject({ code: 'aborted' });
  expect(lock.waiting).toBe(0);
  const next = lock.acquire();
  release();
  (await next)();
  expect(lock.held).toBe(false);
  await expect(lock.acquire(controller.signal)).rejects.toMatchObject({ code: 'aborted' });
});

test('an abort that comes after the grant does not touch the lock', async () => {
  const lock = new TurnLock();
  const release = await lock.acquire();
  const controller = new AbortController();
  const waiter = lock.acquire(controller.signal);
  release();
  controller.abort();
  const done = await waiter;
  expect(lock.held).toBe(true);
  done();
  expect(lock.held).toBe(false);
});

test('refuseAll sends every waiter away with the error', async () => {
  const lock = new TurnLock();
  const release = await lock.acquire();
  const waiters = [lock.acquire(), lock.acquire()];
  lock.refuseAll(new Error('gone'));
  for (const waiter of waiters) await expect(waiter).rejects.toThrow('gone');
  release();
  expect(lock.held).toBe(false);
});
