import { UnsupportedModelError } from '../core/errors.ts';
import type { AttendPlan } from './webgpu-plan.ts';
import { fillLut, type HeadShape, shaderPrelude, unroll } from './webgpu-prelude.ts';
import { COPY_DST, STORAGE, UNIFORM } from './webgpu-usage.ts';

export const SHADER_FILES = [
  'common',
  'lanes-subgroup',
  'lanes-workgroup',
  'attend',
  'attend-combine',
  'attend-mass',
  'append',
  'hadamard',
  'encode',
  'decay',
] as const;
export type ShaderSources = Readonly<Record<(typeof SHADER_FILES)[number], string>>;

export interface WebGpuAttentionOptions {
  readonly device: GPUDevice;
  readonly shaders: ShaderSources;
  readonly shape: HeadShape;
  /** Exchange between lanes by subgroup operations. Only where the device has them in subgroups of exactly 32: see `subgroupsOf`. */
  readonly subgroups: boolean;
}

/** A plan's tables and scratch on the device, for as long as the conversations stand where they stand. */
export interface DevicePlan {
  readonly plan: AttendPlan;
  /** Records the attention of all the plan's items. */
  attend(pass: GPUComputePassEncoder): void;
  destroy(): void;
}

export interface DevicePlanOptions {
  readonly plan: AttendPlan;
  readonly scale: number;
  /** Units of attention mass that a probability of 1 adds to a cell, in segment blocks and exact parts; 0: none is kept. */
  readonly mass: number;
  /** The same bytes as the blocks of a WASM arena have. */
  readonly cache: GPUBuffer;
  readonly queries: GPUBuffer;
  readonly out: GPUBuffer;
}

/** What `navigator.gpu.requestAdapter()` found can do for these kernels, as `requestDevice` wants it. */
export function deviceDescriptor(adapter: GPUAdapter): GPUDeviceDescriptor {
  const wanted: GPUFeatureName[] = ['subgroups', 'timestamp-query'];
  const { limits } = adapter;
  return {
    requiredFeatures: wanted.filter((name) => adapter.features.has(name)),
    requiredLimits: {
      maxBufferSize: limits.maxBufferSize,
      maxStorageBufferBindingSize: limits.maxStorageBufferBindingSize,
      maxComputeWorkgroupStorageSize: limits.maxComputeWorkgroupStorageSize,
      maxStorageBuffersPerShaderStage: limits.maxStorageBuffersPerShaderStage,
    },
  };
}

/** Whether the kernels may exchange by subgroup operations: a workgroup of 32 must be one subgroup. */
export const subgroupsOf = (device: GPUDevice): boolean => {
  const { subgroupMinSize, subgroupMaxSize } = device.adapterInfo;
  return device.features.has('subgroups') && subgroupMinSize === 32 && subgroupMaxSize === 32;
};

export interface WebGpuAttention {
  readonly device: GPUDevice;
  readonly subgroups: boolean;
  prepare(options: DevicePlanOptions): DevicePlan;
}

/** Attention over the packed cache on a GPU: shaders/attend*.wgsl. The bytes are those of layout.ts; arithmetic is float32 throughout. */
export function createWebGpuAttention({
  device,
  shaders,
  shape,
  subgroups,
}: WebGpuAttentionOptions): WebGpuAttention {
  const { heads, kvHeads, headDim } = shape;
  if (headDim % 4 !== 0 || headDim > 256 || heads % kvHeads !== 0)
    throw new UnsupportedModelError(
      `${heads} heads over ${kvHeads} of ${headDim} channels: the WebGPU kernels want a multiple of 4 channels, at most 256`,
    );
  const prelude = shaderPrelude(shape);
  const pipeline = (label: string, ...parts: string[]): GPUComputePipeline =>
    device.createComputePipeline({
      label,
      layout: 'auto',
      compute: { module: device.createShaderModule({ label, code: parts.join('\n') }) },
    });
  const attendPipeline = pipeline(
    'attend',
    ...(subgroups ? ['enable subgroups;', shaders['lanes-subgroup']] : [shaders['lanes-workgroup']]),
    prelude,
    shaders.common,
    fillLut(),
    unroll(shaders.attend, heads / kvHeads),
  );
  const combinePipeline = pipeline('attend-combine', prelude, shaders.common, shaders['attend-combine']);
  const massPipeline = pipeline('attend-mass', prelude, shaders.common, shaders['attend-mass']);

  const upload = (data: Uint32Array<ArrayBuffer>, usage: number): GPUBuffer => {
    const buffer = device.createBuffer({
      size: Math.max(32, data.byteLength),
      usage: usage | COPY_DST,
    });
    device.queue.writeBuffer(buffer, 0, data);
    return buffer;
  };
  const bind = (pipeline: GPUComputePipeline, buffers: readonly GPUBuffer[]): GPUBindGroup =>
    device.createBindGroup({
      layout: pipeline.getBindGroupLayout(0),
      entries: buffers.map((buffer, binding) => ({ binding, resource: { buffer } })),
    });

  return {
    device,
    subgroups,
    prepare({ plan, scale, mass, cache, queries, out }) {
      const { rows, itemCount, splitCount } = plan;
      const params = new Uint32Array([rows, mass ? plan.scoreCells : 0, 0, 0]);
      new Float32Array(params.buffer).set([scale, mass], 2);
      const scratch = (bytes: number): GPUBuffer => device.createBuffer({ size: bytes, usage: STORAGE });
      const own = {
        params: upload(params, UNIFORM),
        items: upload(plan.items, STORAGE),
        splits: upload(plan.splits, STORAGE),
        segments: upload(plan.segments, STORAGE),
        partials: scratch(splitCount * rows * heads * (headDim + 2) * 4),
        scores: scratch(mass ? plan.scoreCells * rows * heads * 4 : 16),
        softmax: scratch(Math.max(16, itemCount * rows * heads * 8)),
      };
      const { items, splits, segments, partials, scores, softmax } = own;
      const attendGroup = bind(attendPipeline, [
        own.params,
        cache,
        cache,
        queries,
        items,
        splits,
        segments,
        partials,
        scores,
      ]);
      const combineGroup = bind(combinePipeline, [own.params, items, partials, out, softmax]);
      const massGroup =
        mass > 0 && bind(massPipeline, [own.params, cache, items, splits, segments, scores, softmax]);
      return {
        plan,
        attend(pass) {
          pass.setPipeline(attendPipeline);
          pass.setBindGroup(0, attendGroup);
          pass.dispatchWorkgroups(splitCount, kvHeads, rows);
          pass.setPipeline(combinePipeline);
          pass.setBindGroup(0, combineGroup);
          pass.dispatchWorkgroups(itemCount, heads, rows);
          if (!massGroup) return;
          pass.setPipeline(massPipeline);
          pass.setBindGroup(0, massGroup);
          pass.dispatchWorkgroups(splitCount, kvHeads);
        },
        destroy() {
          for (const buffer of Object.values(own)) buffer.destroy();
        },
      };
    },
  };
}
