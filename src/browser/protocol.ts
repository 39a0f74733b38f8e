/** What a page and the application in its worker say to each other. */

export type BackendChoice = 'auto' | 'wasm' | 'webgpu';

/** Where the application stands, in the order in which it comes. */
export type BrowserStatus =
  /** What was chosen and why. */
  | { readonly state: 'chosen'; readonly report: BrowserReport }
  /** Weights: from the network, or from what the browser kept of them. */
  | { readonly state: 'loading'; readonly done: number; readonly total: number; readonly cached: boolean }
  | { readonly state: 'ready'; readonly report: BrowserReport; readonly timing: LoadTiming }
  | { readonly state: 'failed'; readonly code: string; readonly message: string };

export interface BrowserReport {
  readonly backend: 'wasm' | 'webgpu';
  /** Kernels: "relaxed SIMD", or the adapter's name. */
  readonly what: string;
  readonly why: string;
}

/** Milliseconds since the worker began, and bytes. */
export interface LoadTiming {
  readonly readyMs: number;
  /** Of the bundle's files, that came over the network now; 0 where the browser had kept them. */
  readonly fetchedBytes: number;
}

export interface WireRequest {
  readonly method: string;
  /** From the root on, with its query. */
  readonly path: string;
  readonly headers: readonly (readonly [string, string])[];
  readonly body: string | Blob | null;
}

export type ToWorker =
  | { readonly type: 'start'; readonly backend: BackendChoice }
  | { readonly type: 'request'; readonly id: number; readonly request: WireRequest }
  /** The next piece of an answer is wanted. */
  | { readonly type: 'pull'; readonly id: number }
  /** Nobody waits for the answer any more. */
  | { readonly type: 'cancel'; readonly id: number };

export type FromWorker =
  | { readonly type: 'status'; readonly status: BrowserStatus }
  | {
      readonly type: 'head';
      readonly id: number;
      readonly status: number;
      readonly headers: readonly (readonly [string, string])[];
    }
  | { readonly type: 'piece'; readonly id: number; readonly bytes: Uint8Array<ArrayBuffer> }
  | { readonly type: 'end'; readonly id: number }
  | { readonly type: 'broken'; readonly id: number; readonly message: string };
