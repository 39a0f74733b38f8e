// float32 matrix [n, k], rows one after the other; n is a multiple of 4. Channels past k are zero.
@group(0) @binding(1) var<storage, read> weights: array<vec4<f32>>;

fn four(at: u32, channel: u32) -> vec4<f32> { return select(vec4<f32>(), weights[at], channel < step.k); }
fn unitAt(weight: u32, quad: u32, unit: u32) -> Unit {
  let at = weight + quad * step.k + unit * 2u;
  let row = step.k / 4u;
  let c = unit * 8u;
  let a = mat4x4(four(at, c), four(at + row, c), four(at + 2u * row, c), four(at + 3u * row, c));
  let b = mat4x4(
    four(at + 1u, c + 4u), four(at + row + 1u, c + 4u), four(at + 2u * row + 1u, c + 4u), four(at + 3u * row + 1u, c + 4u));
  return Unit(transpose(a), transpose(b), vec4(1.0), vec4(0.0));
}
