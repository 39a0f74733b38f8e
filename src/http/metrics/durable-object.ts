import { DurableObject } from 'cloudflare:workers';
import type { Metrics, Sums } from './metrics.ts';
import { sumsOf } from './metrics.ts';

/** The counters of a deployment, in one object: one row written a turn. */
export class MetricsObject extends DurableObject {
  async add(sums: Sums): Promise<void> {
    // Synchronous from the read to the write: nothing comes between.
    this.ctx.storage.kv.put(SUMS, sumsOf(this.#sums(), sums));
  }

  async read(): Promise<Sums> {
    return this.#sums();
  }

  #sums(): Sums {
    return this.ctx.storage.kv.get<Sums>(SUMS) ?? {};
  }
}

const SUMS = 'sums';

export function durableObjectMetrics(namespace: DurableObjectNamespace<MetricsObject>): Metrics {
  return {
    add: async (sums) => namespace.getByName('metrics').add({ ...sums }),
    read: async () => namespace.getByName('metrics').read(),
  };
}
