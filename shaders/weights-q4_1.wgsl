// GGUF's Q4_1 in groups of 4 rows (src/kernels/weights.ts): blocks of 5 vectors, scales and minima first; a vector's byte is (channel % 4) * 4 + row.
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;

fn codes(word: u32) -> vec4<f32> {
  return vec4<f32>(vec4(word & 15u, (word >> 8u) & 15u, (word >> 16u) & 15u, (word >> 24u) & 15u));
}
fn unitAt(weight: u32, quad: u32, unit: u32) -> Unit {
  let block = weight + (quad * (step.k / 32u) + unit / 4u) * 5u;
  let head = weights[block];
  let v = weights[block + 1u + (unit & 3u)];
  return Unit(
    mat4x4(codes(v.x), codes(v.y), codes(v.z), codes(v.w)),
    mat4x4(codes(v.x >> 4u), codes(v.y >> 4u), codes(v.z >> 4u), codes(v.w >> 4u)),
    vec4(unpack2x16float(head.x), unpack2x16float(head.y)),
    vec4(unpack2x16float(head.z), unpack2x16float(head.w)));
}
