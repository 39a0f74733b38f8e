// out = x * weight / sqrt(mean(x^2) + epsilon). Dispatch [rows], 64 lanes over the channels.

@group(0) @binding(1) var<storage, read> weights: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  step = steps[0];
  let from_ = step.x + id.x * step.ldX;
  let factor = rmsFactor(from_, lane);
  let to = step.out + id.x * step.ldOut;
  for (var c = lane; c < step.k / 4u; c += 64u) { values[to + c] = values[from_ + c] * factor * weights[step.weight + c]; }
}
