// Q4_1 with scales and minima on a grid per row (src/kernels/weights.ts): groups of 8 rows, 4 vectors of grids, then blocks of 9 vectors;
// a vector's byte is (row % 4) * 4 + channel % 4.
@group(0) @binding(1) var<storage, read> weights: array<vec4<u32>>;

fn codes(word: u32) -> vec4<f32> {
  return vec4<f32>(vec4(word & 15u, (word >> 8u) & 15u, (word >> 16u) & 15u, (word >> 24u) & 15u));
}
fn bytes(word: u32) -> vec4<i32> {
  return vec4<i32>(vec4(word & 255u, (word >> 8u) & 255u, (word >> 16u) & 255u, word >> 24u));
}
/// step * (origin + byte): the step is a bfloat16 in the upper half, the origin an i16 in the lower.
fn onGrid(grid: vec4<u32>, byte: vec4<i32>) -> vec4<f32> {
  return bitcast<vec4<f32>>(grid & vec4(0xffff0000u)) * vec4<f32>((bitcast<vec4<i32>>(grid << vec4(16u)) >> vec4(16u)) + byte);
}
fn unitAt(weight: u32, quad: u32, unit: u32) -> Unit {
  let upper = quad & 1u;
  let group = weight + (quad / 2u) * (4u + step.k / 32u * 9u);
  let block = group + 4u + unit / 4u * 9u;
  let head = weights[block];
  let v = weights[block + 1u + upper * 4u + (unit & 3u)];
  return Unit(
    transpose(mat4x4(codes(v.x), codes(v.y), codes(v.z), codes(v.w))),
    transpose(mat4x4(codes(v.x >> 4u), codes(v.y >> 4u), codes(v.z >> 4u), codes(v.w >> 4u))),
    onGrid(weights[group + upper], bytes(select(head.x, head.y, upper == 1u))),
    onGrid(weights[group + 2u + upper], bytes(select(head.z, head.w, upper == 1u))));
}
