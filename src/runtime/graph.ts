/**
 * The model as a graph, in ONNX's operators: what `prepare` writes to model.onnx (weights as external initialisers in the
 * kernels' own layout) and repeats in the manifest, so that a host needs no protobuf. One logical weight stands where ONNX wants several
 * inputs (codes, scales, zero points); partition.ts lowers it to stock inputs for stages that onnxruntime runs.
 */
export interface GraphNode {
  readonly name: string;
  /** ONNX operator, without its domain. */
  readonly op: string;
  /** '' for ai.onnx. */
  readonly domain: string;
  /** Value or weight names; '' for an absent optional input. */
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly attributes: Readonly<Record<string, number | string | readonly number[]>>;
}

/**
 * Values: 'input_ids' in, 'logits' out; all values between are f32 [rows, width]. Operators prepare writes for a llama-family GGUF:
 *   Gather(embed_tokens, input_ids) -> x                              [rows, hidden]
 *   per layer i:
 *   SimplifiedLayerNormalization(x, norm) {epsilon, axis: -1} -> h
 *   MatMulNBits(h, w) {K, N, bits, block_size} -> q, k, v             com.microsoft; or MatMul for f32 weights
 *   GroupQueryAttention(q, k, v) {num_heads, kv_num_heads, scale, do_rotary: 1, rotary_interleaved: 0, layer: i} -> a    com.microsoft
 *   MatMulNBits(a, wo) -> o;  Add(x, o) -> x'
 *   SimplifiedLayerNormalization(x', norm) -> h'
 *   MatMulNBits(h', gate) -> g;  MatMulNBits(h', up) -> u
 *   Sigmoid(g) -> s;  Mul(g, s) -> gs;  Mul(gs, u) -> m;  MatMulNBits(m, down) -> d;  Add(x', d) -> x''
 *   SimplifiedLayerNormalization(x, norm) -> h;  MatMulNBits(h, lm_head) -> logits
 * Rows of q and k are in rotate-half order (GGUF's interleaved permutation is undone by prepare).
 */
export interface Graph {
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly nodes: readonly GraphNode[];
}
