import { UnsupportedModelError } from '../core/errors.ts';
import { type OnnxFile, type OnnxNode, type OnnxTensor, TYPE, tensorNumbers } from './onnx-file.ts';
import { affineMatrix, blockMatrix, denseMatrix, type OnnxMatrix } from './onnx-weights.ts';

/** A product of a value with a weight. */
export interface Linear {
  /** The value that is multiplied; quantisation of activations is looked through. */
  readonly x: string;
  readonly weight: OnnxMatrix;
}

/** A value, or the sum of two that a fused node forms without naming it. */
export type Stream = string | { readonly a: string; readonly b: string };

export interface Norm {
  readonly x: Stream;
  readonly weight: OnnxMatrix;
  readonly epsilon: number;
}

/** Operators that change neither values nor their order in memory where this reader looks through them. */
const CASTS = new Set(['Cast', 'Identity']);
const RESHAPES = new Set(['Reshape', 'Transpose', 'Unsqueeze', 'Squeeze', 'Expand', 'Flatten']);

/**
 * Reads single computations out of an export's graph, whichever of the known exporters wrote them, and whether fused or in pieces. A method
 * returns undefined where the value is computed by something else; what it recognises but cannot carry over (a bias,
 * say) it refuses by name.
 */
export class OnnxView {
  readonly #model: OnnxFile;
  readonly #producer = new Map<string, OnnxNode>();

  constructor(model: OnnxFile) {
    this.#model = model;
    for (const node of model.nodes) for (const name of node.outputs) if (name) this.#producer.set(name, node);
  }

  refuse(node: OnnxNode | undefined, why: string): never {
    const { file } = this.#model;
    throw new UnsupportedModelError(
      node ? `${file}: node ${node.name} (${node.op}) ${why}` : `${file}: ${why}`,
      node ? { file, node: node.name, op: node.op } : { file },
    );
  }

  /** The node that computes a value, casts looked through. */
  producer(name: string): OnnxNode | undefined {
    return this.#producer.get(this.strip(name));
  }
  isInput(name: string): boolean {
    return this.#model.inputs.has(name);
  }
  inputDims(name: string): readonly (number | string)[] | undefined {
    return this.#model.inputs.get(name);
  }

  /** The value under casts. */
  strip(name: string): string {
    return this.#under(name, CASTS);
  }
  /** The value under casts and reshapes. */
  unshaped(name: string): string {
    return this.#under(this.strip(name), RESHAPES, CASTS);
  }
  #under(name: string, ...looked: ReadonlySet<string>[]): string {
    let at = name;
    for (;;) {
      const node = this.#producer.get(at);
      if (!node || !looked.some((ops) => ops.has(node.op))) return at;
      at = node.inputs[0]!;
    }
  }

  /** The stored tensor behind a value, casts looked through. */
  constant(name: string): OnnxTensor | undefined {
    return this.#model.tensors.get(this.strip(name));
  }
  /** The one number of a stored scalar. */
  scalar(name: string | undefined): number | undefined {
    const tensor = name === undefined ? undefined : this.constant(name);
    return tensor?.elements === 1 ? tensorNumbers(tensor)[0] : undefined;
  }

  /** Both operands of a two-operand node, the one that `pick` accepts first. */
  operands(node: OnnxNode, pick: (name: string) => boolean): [string, string] | undefined {
    const [a, b] = node.inputs as [string, string];
    return pick(a) ? [a, b] : pick(b) ? [b, a] : undefined;
  }

  linear(name: string): Linear | undefined {
    const node = this.producer(name);
    const { file } = this.#model;
    switch (node?.op) {
      case 'MatMul': {
        const weight = this.#matrix(node.inputs[1]!, true);
        return weight && { x: this.#activation(node.inputs[0]!), weight };
      }
      case 'Gemm': {
        if (node.inputs[2]) this.refuse(node, 'has a bias, which a plain llama decoder has not');
        if ((node.attributes.get('alpha') ?? 1) !== 1 || node.attributes.get('transA'))
          this.refuse(node, 'scales or transposes its input, which is not supported');
        const weight = this.#matrix(node.inputs[1]!, node.attributes.get('transB') !== 1);
        return weight && { x: this.#activation(node.inputs[0]!), weight };
      }
      case 'com.microsoft::MatMulNBits': {
        const [x, codes, scales, zeroPoints, groups, bias] = node.inputs;
        if (groups) this.refuse(node, 'has a group index (g_idx), which is not supported');
        if (bias) this.refuse(node, 'has a bias, which a plain llama decoder has not');
        const weight = blockMatrix(
          {
            n: this.#integer(node, 'N'),
            k: this.#integer(node, 'K'),
            bits: this.#integer(node, 'bits', 4),
            blockSize: this.#integer(node, 'block_size'),
            codes: this.#stored(node, codes),
            scales: this.#stored(node, scales),
            zeroPoints: zeroPoints ? this.#stored(node, zeroPoints) : undefined,
          },
          file,
        );
        return { x: this.#activation(x!), weight };
      }
      case 'Mul':
        return this.#integerProduct(node);
      case 'Add':
        if (
          node.inputs.some((input) => this.constant(input)) &&
          node.inputs.some((input) => this.linear(input))
        )
          this.refuse(node, 'adds a bias to a projection, which a plain llama decoder has not');
        return undefined;
      default:
        return undefined;
    }
  }

  /** Mul(Cast(MatMulInteger(q(x), codes, zx, zw)), Mul(scale of x, scale of the codes)): onnxruntime's dynamic quantisation. */
  #integerProduct(node: OnnxNode): Linear | undefined {
    const sides = this.operands(node, (name) => this.producer(name)?.op === 'MatMulInteger');
    if (!sides) return undefined;
    const product = this.producer(sides[0])!;
    const scales = this.producer(sides[1]);
    const quantize = this.producer(product.inputs[0]!);
    const split =
      scales && scales.op === 'Mul' && this.operands(scales, (s) => this.constant(s) !== undefined);
    if (!split || quantize?.op !== 'DynamicQuantizeLinear' || this.strip(split[1]) !== quantize.outputs[1])
      return this.refuse(product, 'is not scaled as dynamic quantisation does');
    const weight = affineMatrix(
      {
        codes: this.#stored(product, product.inputs[1]),
        scale: this.constant(split[0])!,
        zeroPoint: product.inputs[3] ? this.#stored(product, product.inputs[3]) : undefined,
        axis: 1,
        transposed: true,
      },
      this.#model.file,
    );
    return { x: this.strip(quantize.inputs[0]!), weight };
  }

  /** The value behind a quantised one. */
  #activation(name: string): string {
    const at = this.strip(name);
    const node = this.#producer.get(at);
    if (node?.op !== 'DequantizeLinear') return at;
    const quantize = this.producer(node.inputs[0]!);
    return quantize?.op === 'QuantizeLinear' ? this.strip(quantize.inputs[0]!) : at;
  }

  /** A stored matrix behind a value: [n, k], or [k, n] if `transposed`; transpositions and dequantisation of it are carried out. */
  #matrix(name: string, transposed: boolean): OnnxMatrix | undefined {
    const { file } = this.#model;
    const tensor = this.constant(name);
    if (tensor) return denseMatrix(tensor, transposed, file);
    const node = this.producer(name);
    if (node?.op === 'Transpose' && String(node.attributes.get('perm') ?? '1,0') === '1,0')
      return this.#matrix(node.inputs[0]!, !transposed);
    if (node?.op === 'DequantizeLinear' && this.constant(node.inputs[0]!)) {
      if (node.attributes.get('block_size'))
        this.refuse(node, 'dequantises in blocks, which is not supported');
      return affineMatrix(
        {
          codes: this.#stored(node, node.inputs[0]),
          scale: this.#stored(node, node.inputs[1]),
          zeroPoint: node.inputs[2] ? this.#stored(node, node.inputs[2]) : undefined,
          axis: (Number(node.attributes.get('axis') ?? 1) & 1) as 0 | 1,
          transposed,
        },
        file,
      );
    }
    return undefined;
  }

  /** The table whose rows `input_ids` picks. */
  embedding(name: string): OnnxMatrix | undefined {
    const node = this.producer(name);
    if (node?.op === 'com.microsoft::GatherBlockQuantized') return this.#quantizedTable(node);
    if (node?.op === 'DequantizeLinear') {
      // Gather of codes, then DequantizeLinear of the rows: the same as the table dequantised.
      const gather = this.producer(node.inputs[0]!);
      if (gather?.op !== 'Gather') return undefined;
      this.#checkIds(gather);
      const [scale, zeroPoint] = [node.inputs[1], node.inputs[2]].map((t) =>
        t ? this.#stored(node, t) : undefined,
      );
      if (scale!.elements !== 1)
        this.refuse(node, 'has several scales for an embedding, which is not supported');
      const codes = this.#stored(gather, gather.inputs[0]);
      return affineMatrix({ codes, scale: scale!, zeroPoint, axis: 0, transposed: false }, this.#model.file);
    }
    if (node?.op !== 'Gather') return undefined;
    const table = this.#matrix(node.inputs[0]!, false);
    if (table) this.#checkIds(node);
    return table;
  }

  #quantizedTable(node: OnnxNode): OnnxMatrix {
    this.#checkIds(node);
    const axis = Number(node.attributes.get('quantize_axis') ?? 1);
    if (axis !== 1 && axis !== -1)
      this.refuse(node, `quantises along axis ${axis}; only the rows are supported`);
    const codes = this.#model.tensors.get(this.unshaped(node.inputs[0]!));
    if (codes?.type !== TYPE.UINT8) return this.refuse(node, 'reads no stored uint8 table');
    const scales = this.#stored(node, node.inputs[2]);
    const bits = this.#integer(node, 'bits', 4);
    const n = scales.dims[0]!;
    const k = (codes.elements * 8) / bits / n;
    const zeroPoints = node.inputs[3] ? this.#stored(node, node.inputs[3]) : undefined;
    const blockSize = this.#integer(node, 'block_size', 128);
    return blockMatrix({ n, k, bits, blockSize, codes, scales, zeroPoints }, this.#model.file);
  }

  #checkIds(gather: OnnxNode): void {
    const ids = this.strip(gather.inputs[1]!);
    if (ids !== 'input_ids' || !this.isInput(ids)) this.refuse(gather, `reads rows ${ids}, not input_ids`);
    if ((gather.attributes.get('axis') ?? 0) !== 0 || gather.attributes.get('gather_axis'))
      this.refuse(gather, 'does not pick rows');
  }

  /** RMS norm: one node, fused with the addition before it, or spelled out. */
  norm(name: string): Norm | undefined {
    const node = this.producer(name);
    const fused =
      node && /^(com\.microsoft::)?(Skip)?SimplifiedLayerNormalization$|^RMSNormalization$/.exec(node.op);
    if (!node || !fused) return node?.op === 'Mul' ? this.#spelledNorm(node) : undefined;
    const skip = fused[2] !== undefined;
    if (this.strip(name) !== node.outputs[0]) return undefined;
    const axis = Number(node.attributes.get('axis') ?? -1);
    if (!skip && axis !== -1 && axis !== 2) this.refuse(node, `normalises from axis ${axis}, not the last`);
    if (skip && node.inputs[3]) this.refuse(node, 'has a bias, which a plain llama decoder has not');
    const [a, b] = node.inputs.map((input) => this.strip(input)) as [string, string];
    const weight = this.#vector(node, node.inputs[skip ? 2 : 1]);
    return { x: skip ? { a, b } : a, weight, epsilon: Number(node.attributes.get('epsilon') ?? 1e-5) };
  }

  /** weight * (x / sqrt(mean(x^2) + epsilon)) */
  #spelledNorm(node: OnnxNode): Norm | undefined {
    const sides = this.operands(node, (input) => (this.constant(input)?.elements ?? 0) > 1);
    const scaled = sides && this.producer(sides[1]);
    if (!sides || (scaled?.op !== 'Mul' && scaled?.op !== 'Div')) return undefined;
    let root: OnnxNode | undefined;
    let x: string;
    if (scaled.op === 'Div') {
      x = scaled.inputs[0]!;
      root = this.producer(scaled.inputs[1]!);
    } else {
      const inverse = this.operands(scaled, (input) =>
        ['Div', 'Reciprocal'].includes(this.producer(input)?.op ?? ''),
      );
      if (!inverse) return undefined;
      const over = this.producer(inverse[0])!;
      if (over.op === 'Div' && this.scalar(over.inputs[0]) !== 1) return undefined;
      x = inverse[1];
      root = this.producer(over.inputs.at(-1)!);
    }
    const sum = root?.op === 'Sqrt' ? this.producer(root.inputs[0]!) : undefined;
    const parts =
      sum?.op === 'Add' ? this.operands(sum, (input) => this.scalar(input) !== undefined) : undefined;
    const mean = parts && this.producer(parts[1]);
    const square = mean?.op === 'ReduceMean' ? this.producer(mean.inputs[0]!) : undefined;
    const squared =
      square?.op === 'Pow'
        ? this.scalar(square.inputs[1]) === 2
        : square?.op === 'Mul' && this.strip(square.inputs[0]!) === this.strip(square.inputs[1]!);
    if (!parts || !square || !squared || this.strip(square.inputs[0]!) !== this.strip(x)) return undefined;
    const axes = mean!.inputs[1] ? this.scalar(mean!.inputs[1]) : Number(mean!.attributes.get('axes'));
    if (axes !== -1 && axes !== 2) this.refuse(mean, `averages over axis ${axes}, not the last`);
    return { x: this.strip(x), weight: this.#vector(node, sides[0]), epsilon: this.scalar(parts[0])! };
  }

  /** The two terms of a residual sum. */
  terms(stream: Stream): { a: string; b: string } | undefined {
    if (typeof stream !== 'string') return stream;
    const name = this.strip(stream);
    const node = this.#producer.get(name);
    if (node?.op === 'Add' && !node.inputs.some((input) => this.constant(input)))
      return { a: this.strip(node.inputs[0]!), b: this.strip(node.inputs[1]!) };
    if (node?.op === 'com.microsoft::SkipSimplifiedLayerNormalization' && node.outputs[3] === name)
      return { a: this.strip(node.inputs[0]!), b: this.strip(node.inputs[1]!) };
    return undefined;
  }

  /** Whether two streams are the same sum or value, however it is named. */
  same(a: Stream, b: Stream): boolean {
    const key = (stream: Stream): string => {
      const terms = this.terms(stream);
      return terms ? [terms.a, terms.b].sort().join(' + ') : this.strip(stream as string);
    };
    return key(a) === key(b);
  }

  #vector(node: OnnxNode, name: string | undefined): OnnxMatrix {
    const tensor = this.#stored(node, name);
    if (tensor.dims.length !== 1) this.refuse(node, `scales by [${tensor.dims.join(', ')}], not a vector`);
    return denseMatrix(tensor, false, this.#model.file);
  }
  #stored(node: OnnxNode, name: string | undefined): OnnxTensor {
    return (name ? this.constant(name) : undefined) ?? this.refuse(node, `computes its weight ${name ?? ''}`);
  }
  #integer(node: OnnxNode, attribute: string, fallback?: number): number {
    const value = node.attributes.get(attribute) ?? fallback;
    return typeof value === 'number' ? value : this.refuse(node, `has no attribute ${attribute}`);
  }
}
