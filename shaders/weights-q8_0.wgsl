// GGUF's Q8_0 in groups of 4 rows (src/kernels/weights.ts): blocks of 34 words, two of scales, then one for each channel's 4 rows.
@group(0) @binding(1) var<storage, read> weights: array<u32>;

fn codes(at: u32) -> vec4<f32> {
  let word = weights[at];
  return vec4<f32>(vec4<i32>(vec4(word << 24u, word << 16u, word << 8u, word)) >> vec4(24u));
}
fn unitAt(weight: u32, quad: u32, unit: u32) -> Unit {
  let block = weight + (quad * (step.k / 32u) + unit / 4u) * 34u;
  let at = block + 2u + (unit & 3u) * 8u;
  return Unit(
    mat4x4(codes(at), codes(at + 1u), codes(at + 2u), codes(at + 3u)),
    mat4x4(codes(at + 4u), codes(at + 5u), codes(at + 6u), codes(at + 7u)),
    vec4(unpack2x16float(weights[block]), unpack2x16float(weights[block + 1u])),
    vec4(0.0));
}
