import { UnsupportedModelError } from '../../core/errors.ts';
import type { WeightForm } from '../../kernels/kernels.ts';
import type { GpuForm } from '../../kernels/webgpu-dense.ts';
import { TABLE_ALIGNMENT } from '../../kernels/webgpu-stream.ts';
import { COPY_DST, STORAGE } from '../../kernels/webgpu-usage.ts';
import { unpackWeight } from '../../kernels/weights.ts';
import type { BundleSource, Manifest, TensorEntry } from '../manifest.ts';
import { type ShardPiece, streamShards } from '../model.ts';

/** A weight on the device. */
export interface GpuWeight {
  readonly form: GpuForm;
  readonly buffer: GPUBuffer;
  /** Byte offset. */
  readonly at: number;
  /** [n, k], or [dim] for norms. */
  readonly shape: readonly number[];
}
export interface GpuWeights {
  readonly weights: ReadonlyMap<string, GpuWeight>;
  readonly bytes: number;
  destroy(): void;
}

/** The 6-bit form needs a rotated operand; a GPU has the memory to hold its values instead. */
const heldAs = (form: WeightForm): GpuForm => (form === 'q6h' ? 'f32' : form);
const bytesOf = ({ form, shape, bytes }: TensorEntry): number =>
  form === 'q6h' ? shape.reduce((a, b) => a * b, 4) : bytes;

/**
 * Streams a bundle's weights to the device, in the kernels' own layout: the values are those of WASM's kernels. Tensors that share their bytes are held once;
 * beside the device, memory holds one tensor at a time.
 */
export async function loadGpuWeights(
  device: GPUDevice,
  source: BundleSource,
  manifest: Manifest,
  onProgress?: (done: number, total: number) => void,
): Promise<GpuWeights> {
  const limit = Math.min(device.limits.maxBufferSize, device.limits.maxStorageBufferBindingSize);
  const places = new Map<string, { buffer: number; at: number; tensor: TensorEntry }>();
  const sizes: number[] = [];
  for (const [name, tensor] of Object.entries(manifest.tensors)) {
    const key = JSON.stringify(tensor.parts);
    if (places.has(key)) continue;
    checkShape(name, tensor);
    const size = Math.ceil(bytesOf(tensor) / TABLE_ALIGNMENT) * TABLE_ALIGNMENT;
    if (size > limit)
      throw new UnsupportedModelError(
        `weight ${name} takes ${size} bytes, this GPU binds at most ${limit}; use the wasm backend`,
        { weight: name, size, limit },
      );
    if (sizes.length === 0 || sizes.at(-1)! + size > limit) sizes.push(0);
    places.set(key, { buffer: sizes.length - 1, at: sizes.at(-1)!, tensor });
    sizes[sizes.length - 1]! += size;
  }
  const buffers = sizes.map((size, i) =>
    device.createBuffer({ label: `weights ${i}`, size, usage: STORAGE | COPY_DST }),
  );
  const pieces: ShardPiece[] = [];
  for (const { buffer, at, tensor } of places.values()) {
    let held: Uint8Array<ArrayBuffer> | undefined;
    let left = tensor.bytes;
    let before = 0;
    for (const { shard, offset, bytes } of tensor.parts) {
      const start = before;
      const write = (piece: Uint8Array, from: number): void => {
        held ??= new Uint8Array(tensor.bytes);
        held.set(piece, start + from);
        left -= piece.length;
        if (left > 0) return;
        device.queue.writeBuffer(buffers[buffer]!, at, onDevice(tensor, held));
        held = undefined;
      };
      pieces.push({ shard, at: offset, bytes, write });
      before += bytes;
    }
  }
  await streamShards(source, manifest, pieces, onProgress);
  const weights = new Map<string, GpuWeight>();
  for (const [name, tensor] of Object.entries(manifest.tensors)) {
    const { buffer, at } = places.get(JSON.stringify(tensor.parts))!;
    weights.set(name, { form: heldAs(tensor.form), buffer: buffers[buffer]!, at, shape: tensor.shape });
  }
  return {
    weights,
    bytes: sizes.reduce((a, b) => a + b, 0),
    destroy: () => {
      for (const buffer of buffers) buffer.destroy();
    },
  };
}

const onDevice = (
  { form, shape }: TensorEntry,
  bytes: Uint8Array<ArrayBuffer>,
): Uint8Array<ArrayBuffer> | Float32Array<ArrayBuffer> =>
  form === 'q6h' ? (unpackWeight(form, bytes, shape[0]!, shape[1]!) as Float32Array<ArrayBuffer>) : bytes;

function checkShape(name: string, { form, shape }: TensorEntry): void {
  const k = shape.at(-1)!;
  const n = shape.length > 1 && heldAs(form) === 'f32' ? shape[0]! : 4;
  if (k % 4 !== 0 || n % 4 !== 0)
    throw new UnsupportedModelError(
      `weight ${name} is [${shape.join(', ')}]: the WebGPU kernels want multiples of 4; use the wasm backend`,
      { weight: name },
    );
}
