import type { GraphNode } from '../../src/runtime/graph.ts';

/** A value of the graph in float64: [rows, width], or token ids [rows]. */
export interface Value {
  readonly dims: readonly number[];
  readonly data: Float64Array;
}
export interface InterpreterOptions {
  readonly weights: Readonly<Record<string, Value>>;
  readonly ropeTheta?: number;
}

/**
 * Executes nodes in float64, straight from the operators' definitions, adding their outputs to `values`. Independent of the kernels and of
 * onnxruntime: the truth that stages are compared with. Attention starts at position 0 and sees the rows given.
 */
export function interpret(
  nodes: readonly GraphNode[],
  values: Map<string, Value>,
  options: InterpreterOptions,
): void {
  for (const node of nodes) {
    const args = node.inputs.map((name) => {
      const value = values.get(name) ?? options.weights[name];
      if (!value) throw new Error(`${node.name} reads ${name}, which is not there`);
      return value;
    });
    values.set(node.outputs[0]!, evaluate(node, args, options));
  }
}

const UNARY: Readonly<Record<string, (x: number) => number>> = {
  Sigmoid: (x) => 1 / (1 + Math.exp(-x)),
  Relu: (x) => Math.max(0, x),
  Softplus: (x) => Math.log1p(Math.exp(x)),
  Tanh: Math.tanh,
};
const BINARY: Readonly<Record<string, (a: number, b: number) => number>> = {
  Add: (a, b) => a + b,
  Mul: (a, b) => a * b,
};

function evaluate(node: GraphNode, [a, b, c]: Value[], options: InterpreterOptions): Value {
  const x = a!;
  const unary = UNARY[node.op];
  if (unary) return { dims: x.dims, data: x.data.map(unary) };
  const binary = BINARY[node.op];
  if (binary) return { dims: x.dims, data: x.data.map((v, i) => binary(v, b!.data[i % b!.data.length]!)) };
  switch (node.op) {
    case 'Gather':
      return gather(x, b!);
    case 'MatMul':
    case 'MatMulNBits':
      return product(x, b!);
    case 'SimplifiedLayerNormalization':
      return rmsNorm(x, b!, Number(node.attributes.epsilon));
    case 'GroupQueryAttention':
      return attention(node, x, b!, c!, options.ropeTheta ?? 10_000);
    default:
      throw new Error(`the interpreter has no ${node.op}`);
  }
}

function gather(table: Value, ids: Value): Value {
  const [, width] = table.dims as [number, number];
  const data = new Float64Array(ids.data.length * width);
  for (const [row, id] of ids.data.entries())
    data.set(table.data.subarray(id * width, (id + 1) * width), row * width);
  return { dims: [ids.data.length, width], data };
}

/** x [rows, k] times w [n, k] transposed. */
function product(x: Value, w: Value): Value {
  const [rows, k] = x.dims as [number, number];
  const n = w.dims[0]!;
  const data = new Float64Array(rows * n);
  for (let r = 0; r < rows; r++)
    for (let j = 0; j < n; j++) {
      let sum = 0;
      for (let i = 0; i < k; i++) sum += x.data[r * k + i]! * w.data[j * k + i]!;
      data[r * n + j] = sum;
    }
  return { dims: [rows, n], data };
}

function rmsNorm(x: Value, weight: Value, epsilon: number): Value {
  const [rows, width] = x.dims as [number, number];
  const data = new Float64Array(x.data.length);
  for (let r = 0; r < rows; r++) {
    const row = x.data.subarray(r * width, (r + 1) * width);
    const scale = 1 / Math.sqrt(row.reduce((sum, v) => sum + v * v, 0) / width + epsilon);
    for (let i = 0; i < width; i++) data[r * width + i] = row[i]! * scale * weight.data[i]!;
  }
  return { dims: x.dims, data };
}

function rope(x: Value, heads: number, theta: number): Float64Array {
  const [rows, width] = x.dims as [number, number];
  const headDim = width / heads;
  const half = headDim / 2;
  const out = new Float64Array(x.data);
  for (let r = 0; r < rows; r++)
    for (let h = 0; h < heads; h++)
      for (let i = 0; i < half; i++) {
        const at = r * width + h * headDim + i;
        const angle = r * theta ** (-i / half);
        const [re, im] = [x.data[at]!, x.data[at + half]!];
        out[at] = re * Math.cos(angle) - im * Math.sin(angle);
        out[at + half] = im * Math.cos(angle) + re * Math.sin(angle);
      }
  return out;
}

function attention(node: GraphNode, q: Value, k: Value, v: Value, theta: number): Value {
  const heads = Number(node.attributes.num_heads);
  const kvHeads = Number(node.attributes.kv_num_heads);
  const [rows, width] = q.dims as [number, number];
  const headDim = width / heads;
  const scale = Number(node.attributes.scale);
  const [qr, kr] = [rope(q, heads, theta), rope(k, kvHeads, theta)];
  const out = new Float64Array(rows * width);
  for (let h = 0; h < heads; h++) {
    const g = Math.floor((h * kvHeads) / heads);
    for (let r = 0; r < rows; r++) {
      const scores = Array.from({ length: r + 1 }, (_, s) => {
        let dot = 0;
        for (let i = 0; i < headDim; i++)
          dot += qr[r * width + h * headDim + i]! * kr[(s * kvHeads + g) * headDim + i]!;
        return dot * scale;
      });
      const top = Math.max(...scores);
      const weights = scores.map((score) => Math.exp(score - top));
      const total = weights.reduce((sum, w) => sum + w, 0);
      for (let i = 0; i < headDim; i++) {
        let sum = 0;
        for (let s = 0; s <= r; s++) sum += weights[s]! * v.data[(s * kvHeads + g) * headDim + i]!;
        out[r * width + h * headDim + i] = sum / total;
      }
    }
  }
  return { dims: q.dims, data: out };
}
