import { UnsupportedModelError } from '../core/errors.ts';
import { isStreamable, type StreamDivision, streamPrelude, tableVectors } from './webgpu-attend-stream.ts';
import type { AttendPlan } from './webgpu-plan.ts';
import { attendPrelude, fillLut, type HeadShape, shaderPrelude, unroll } from './webgpu-prelude.ts';
import { TABLE_WINDOW } from './webgpu-stream.ts';
import { COMPUTE, COPY_DST, STORAGE, UNIFORM } from './webgpu-usage.ts';

export const SHADER_FILES = [
  'common',
  'lanes',
  'lanes-subgroup',
  'lanes-workgroup',
  'attend-bindings',
  'attend',
  'attend-describe',
  'attend-levels',
  'attend-stream',
  'attend-codes',
  'attend-floats',
  'attend-combine',
  'attend-mass',
  'append',
  'hadamard',
  'encode',
  'decay',
  'copy',
  'words',
  'weights-f32',
  'weights-q4_1',
  'weights-q4r',
  'weights-q8_0',
  'dense',
  'matmul',
  'operand-rows',
  'operand-normed',
  'embed',
  'rms',
  'rms-norm',
  'elementwise',
  'top-k',
] as const;
export type ShaderSources = Readonly<Record<(typeof SHADER_FILES)[number], string>>;

export interface WebGpuAttentionOptions {
  readonly device: GPUDevice;
  readonly shaders: ShaderSources;
  readonly shape: HeadShape;
  /** Exchange between lanes by subgroup operations. Only where the device has them in subgroups of exactly 32: see `subgroupsOf`. */
  readonly subgroups: boolean;
  /** attend-stream.wgsl instead of attend.wgsl, divided so: codes are multiplied as integers. With `describes` the table of blocks is made by each dispatch, else when a plan is prepared. */
  readonly stream?: StreamDivision & { readonly describes?: boolean };
  /** The output leaves the Hadamard rotation, as whoever reads it next wants. */
  readonly unrotated?: boolean;
  /** For caches of plain tiers, whose vectors are not rotated. */
  readonly plain?: boolean;
}

/** Buffers of an attention whose tables come with each dispatch; for as long as they live. */
export interface AttendBindings {
  readonly tables: GPUBuffer;
  readonly cache: GPUBuffer;
  readonly queries: GPUBuffer;
  readonly out: GPUBuffer;
  readonly partials: GPUBuffer;
  readonly scores: GPUBuffer;
  readonly softmax: GPUBuffer;
  /** Where the blocks of each split lie, of kernels that want a table of it. */
  readonly blocks: GPUBuffer;
}
export interface AttendGroups {
  /** Of kernels that want a table of the blocks. */
  readonly describe?: GPUBindGroup | undefined;
  readonly attend: GPUBindGroup;
  readonly combine: GPUBindGroup;
  readonly mass: GPUBindGroup;
}
/** Byte offsets of a plan's tables, as `planTables` lists them. */
export interface AttendTables {
  readonly params: number;
  readonly items: number;
  readonly splits: number;
  readonly segments: number;
}

export function planParams(plan: AttendPlan, scale: number, mass: number): Uint32Array<ArrayBuffer> {
  const params = new Uint32Array([plan.rows, mass ? plan.scoreCells : 0, 0, 0]);
  new Float32Array(params.buffer).set([scale, mass], 2);
  return params;
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
  /** Units of attention mass that a probability of 1 adds to a cell, in segment blocks and exact parts; 0: none is kept. Negative: the largest is kept, not the sum. */
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
      maxComputeInvocationsPerWorkgroup: limits.maxComputeInvocationsPerWorkgroup,
      maxComputeWorkgroupSizeX: limits.maxComputeWorkgroupSizeX,
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
  /** Of a split at most; undefined: as many as whoever plans likes. */
  readonly segments: number | undefined;
  /** Whether a table of blocks is made before, and read from then on. */
  readonly describes: boolean;
  /** Bytes of a plan's scratch. */
  scratchBytes(plan: AttendPlan, mass: boolean): Record<'partials' | 'scores' | 'softmax' | 'blocks', number>;
  prepare(options: DevicePlanOptions): DevicePlan;
  bind(bindings: AttendBindings): AttendGroups;
  /**
   * `pass` opens the pass of the kernel that it is given the name of.
   * @param described `blocks` holds the table of these segments already
   */
  dispatch(
    pass: (label: string) => GPUComputePassEncoder,
    groups: AttendGroups,
    at: AttendTables,
    plan: AttendPlan,
    mass: boolean,
    described: boolean,
  ): void;
}

/** Attention over the packed cache on a GPU: shaders/attend*.wgsl. The bytes are those of layout.ts. */
export function createWebGpuAttention({
  device,
  shaders,
  shape,
  subgroups,
  stream,
  unrotated = false,
  plain = false,
}: WebGpuAttentionOptions): WebGpuAttention {
  const { heads, kvHeads, headDim } = shape;
  if (headDim % 4 !== 0 || headDim > 256 || heads % kvHeads !== 0)
    throw new UnsupportedModelError(
      `${heads} heads over ${kvHeads} of ${headDim} channels: the WebGPU kernels want a multiple of 4 channels, at most 256`,
    );
  const prelude = shaderPrelude(shape, plain);
  const group = heads / kvHeads;
  if (stream && (plain || !isStreamable(shape)))
    throw new UnsupportedModelError('attention of streams wants 64 or 128 channels and no plain tiers');
  const lanes = device.limits.maxComputeInvocationsPerWorkgroup;
  if (stream && stream.warps * 32 > lanes)
    throw new UnsupportedModelError(`${stream.warps} warps are more than this GPU's ${lanes} lanes`);
  if (stream && (stream.segments * headDim) / 8 > stream.warps * 32)
    throw new UnsupportedModelError(
      `${stream.warps} warps are too few for the means of ${stream.segments} segments`,
    );
  const own = stream
    ? [
        streamPrelude(stream),
        shaders['attend-levels'],
        unroll(withParts(shaders['attend-stream'], shaders), { h: group, p: 2, t: 4 }),
      ]
    : [attendPrelude(shape), fillLut(), unroll(shaders.attend, { h: group })];
  const attend = kernel(device, 'attend', ATTEND_BINDINGS, [
    ...(subgroups ? ['enable subgroups;', shaders['lanes-subgroup']] : [shaders['lanes-workgroup']]),
    shaders.lanes,
    prelude,
    shaders.common,
    shaders['attend-bindings'],
    ...own,
  ]);
  const describe =
    stream &&
    kernel(device, 'attend-describe', DESCRIBE_BINDINGS, [
      prelude,
      shaders.common,
      streamPrelude(stream),
      shaders['attend-describe'],
    ]);
  const combine = kernel(device, 'attend-combine', COMBINE_BINDINGS, [
    prelude,
    `const UNROTATED = ${unrotated && !plain};`,
    shaders.common,
    shaders['attend-combine'],
    shaders.hadamard,
  ]);
  const addMass = kernel(device, 'attend-mass', MASS_BINDINGS, [
    prelude,
    shaders.common,
    shaders['attend-mass'],
  ]);

  const describes = (
    open: GPUComputePassEncoder,
    { describe: group }: AttendGroups,
    at: AttendTables,
    plan: AttendPlan,
  ) => {
    open.setPipeline(describe!.pipeline);
    open.setBindGroup(0, group!, [at.splits, at.segments]);
    open.dispatchWorkgroups(plan.splitCount, kvHeads);
  };
  const attends = (
    pass: (label: string) => GPUComputePassEncoder,
    groups: AttendGroups,
    at: AttendTables,
    plan: AttendPlan,
    mass: boolean,
  ) => {
    const { rows, splitCount, itemCount, mostSegments } = plan;
    const { params, items, splits, segments } = at;
    let open = pass('attend');
    open.setPipeline(attend.pipeline);
    open.setBindGroup(0, groups.attend, [params, items, splits, describe ? 0 : segments]);
    open.dispatchWorkgroups(splitCount, kvHeads, rows);
    open = pass('attend-combine');
    open.setPipeline(combine.pipeline);
    open.setBindGroup(0, groups.combine, [params, items]);
    open.dispatchWorkgroups(itemCount, heads, rows);
    if (!mass) return;
    open = pass('attend-mass');
    open.setPipeline(addMass.pipeline);
    open.setBindGroup(0, groups.mass, [params, items, splits, segments]);
    open.dispatchWorkgroups(splitCount, kvHeads, mostSegments);
  };
  const scratchBytes: WebGpuAttention['scratchBytes'] = (
    { rows, itemCount, splitCount, scoreCells },
    mass,
  ) => ({
    partials: splitCount * rows * heads * (headDim + 2) * 4,
    scores: mass ? scoreCells * rows * heads * 4 : 16,
    softmax: Math.max(16, itemCount * rows * heads * 8),
    blocks: stream ? splitCount * kvHeads * tableVectors(stream.segments) * 16 : 16,
  });
  const groupsOf = (
    tables: Record<'params' | 'items' | 'splits' | 'segments', GPUBufferBinding>,
    { cache, queries, out, partials, scores, softmax, blocks }: Omit<AttendBindings, 'tables'>,
  ): AttendGroups => {
    const { params, items, splits, segments } = tables;
    const all = (buffers: readonly (GPUBuffer | GPUBufferBinding)[], layout: GPUBindGroupLayout) =>
      device.createBindGroup({
        layout,
        entries: buffers.map((b, binding) => ({ binding, resource: 'buffer' in b ? b : { buffer: b } })),
      });
    const places = describe ? blocks : segments;
    return {
      describe: describe && all([cache, cache, splits, segments, blocks], describe.layout),
      attend: all([params, cache, cache, queries, items, splits, places, partials, scores], attend.layout),
      combine: all([params, items, partials, out, softmax], combine.layout),
      mass: all([params, cache, items, splits, segments, scores, softmax], addMass.layout),
    };
  };

  return {
    device,
    subgroups,
    segments: stream?.segments,
    describes: describe !== undefined,
    scratchBytes,
    dispatch(pass, groups, at, plan, mass, described) {
      if (describe && !described) describes(pass('attend-describe'), groups, at, plan);
      attends(pass, groups, at, plan, mass);
    },
    bind({ tables: buffer, ...others }) {
      const window = { buffer, size: TABLE_WINDOW };
      const params = { buffer, size: 16 };
      return groupsOf({ params, items: window, splits: window, segments: window }, others);
    },
    prepare({ plan, scale, mass, cache, queries, out }) {
      const upload = (data: Uint32Array<ArrayBuffer>, usage: number): GPUBuffer => {
        const size = Math.max(32, data.byteLength);
        const buffer = device.createBuffer({ size, usage: usage | COPY_DST });
        device.queue.writeBuffer(buffer, 0, data);
        return buffer;
      };
      const tables = {
        params: upload(planParams(plan, scale, mass), UNIFORM),
        items: upload(plan.items, STORAGE),
        splits: upload(plan.splits, STORAGE),
        segments: upload(plan.segments, STORAGE),
      };
      const bytes = scratchBytes(plan, mass !== 0);
      const scratch = (size: number): GPUBuffer => device.createBuffer({ size, usage: STORAGE });
      const own = {
        partials: scratch(bytes.partials),
        scores: scratch(bytes.scores),
        softmax: scratch(bytes.softmax),
        blocks: scratch(bytes.blocks),
      };
      const bindings = Object.fromEntries(
        Object.entries(tables).map(([name, buffer]) => [name, { buffer }]),
      ) as Record<keyof typeof tables, GPUBufferBinding>;
      const groups = groupsOf(bindings, { cache, queries, out, ...own });
      const at = { params: 0, items: 0, splits: 0, segments: 0 };
      if (describe) {
        const encoder = device.createCommandEncoder();
        const pass = encoder.beginComputePass();
        describes(pass, groups, at, plan);
        pass.end();
        device.queue.submit([encoder.finish()]);
      }
      return {
        plan,
        attend: (pass) => {
          if (stream?.describes) describes(pass, groups, at, plan);
          attends(() => pass, groups, at, plan, mass !== 0);
        },
        destroy() {
          for (const buffer of [...Object.values(tables), ...Object.values(own)]) buffer.destroy();
        },
      };
    },
  };
}

/** Lines `// here: NAME` become the shader of that name. */
const withParts = (source: string, shaders: ShaderSources): string =>
  source.replaceAll(/^ *\/\/ here: (\S+)\n/gm, (_, name: string) => shaders[name as keyof ShaderSources]);

/** 'u': uniform, 'r': read, 'w': written; capitals come with dynamic offsets. */
const ATTEND_BINDINGS = 'UrrrRRRww';
const DESCRIBE_BINDINGS = 'rrRRw';
const COMBINE_BINDINGS = 'URrww';
const MASS_BINDINGS = 'UwRRRrr';

export interface Kernel {
  readonly pipeline: GPUComputePipeline;
  readonly layout: GPUBindGroupLayout;
}

/** A pipeline whose bindings are listed as a word: see ATTEND_BINDINGS. */
export function kernel(device: GPUDevice, label: string, bindings: string, code: readonly string[]): Kernel {
  const types = { u: 'uniform', r: 'read-only-storage', w: 'storage' } as const;
  const layout = device.createBindGroupLayout({
    label,
    entries: [...bindings].map((letter, binding) => ({
      binding,
      visibility: COMPUTE,
      buffer: {
        type: types[letter.toLowerCase() as keyof typeof types],
        hasDynamicOffset: letter !== letter.toLowerCase(),
      },
    })),
  });
  return {
    layout,
    pipeline: device.createComputePipeline({
      label,
      layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
      compute: { module: device.createShaderModule({ label, code: code.join('\n') }) },
    }),
  };
}
