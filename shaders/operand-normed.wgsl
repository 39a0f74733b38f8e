// The operand of matmul.wgsl: one row of K channels, which each workgroup normalises for itself, as rms-norm.wgsl does, bit for bit: it goes through memory, so
// that no compiler joins the product that makes it with the sum that reads it.
@group(0) @binding(3) var<storage, read> norms: array<vec4<f32>>;

var<workgroup> normed: array<vec4<f32>, K / 4u>;

fn prepare(lane: u32) {
  let factor = rmsFactor(step.x, lane);
  for (var c = lane; c < K / 4u; c += 64u) { normed[c] = values[step.x + c] * factor * norms[step.norm + c]; }
  workgroupBarrier();
}
fn operand(row: u32, c: u32) -> vec4<f32> { return normed[min(c, K / 4u - 1u)]; }
